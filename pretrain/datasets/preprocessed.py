"""The preprocessed volumes of a dataset, made where they are missing, and their split."""

import json
from pathlib import Path

import numpy as np

from alice_nnunet.data.volumes import case_names
from alice_nnunet.datasets.raw_dataset import open_raw_dataset
from alice_nnunet.environment import nnunet_folder
from alice_nnunet.errors import UserError
from alice_nnunet.geometry import Triple, triple
from alice_nnunet.model.presets import CROPS
from alice_nnunet.names import CONFIGURATION, PRETRAIN_PLANS
from alice_nnunet.pretrain.datasets.preprocessing import REPORT, preprocess_dataset
from alice_nnunet.pretrain.datasets.pretrain_plans import presets_of, spacing_of
from alice_nnunet.pretrain.datasets.shares import print_shares
from alice_nnunet.ranks import rank
from alice_nnunet.text import millimetres

FEWEST = 2  # scans, for pairs of different people


def preprocessed_volumes(
    name: str, processes: int, preset: str, patch_size: Triple
) -> tuple[dict, Path]:
    """Find the preprocessed volumes of a dataset, or preprocess it.

    Args:
        name: DatasetXXX_NAME.
        processes: number of processes that preprocess.
        preset: tiny, small or paper. Decides the spacing of new plans; that of existing plans must
            be the preset's, or one that the user chose.
        patch_size: voxels, for new plans.

    Returns:
        The pretraining plans and the folder of the volumes.

    Raises:
        UserError: the volumes are for another preset.
    """
    preprocessed = nnunet_folder("nnUNet_preprocessed") / name
    path = preprocessed / f"{PRETRAIN_PLANS}.json"
    if path.is_file():
        check_preset(path, name, preset)

    if not is_preprocessed(preprocessed):
        print(
            f"{name} is not (completely) preprocessed in {preprocessed}: this comes first",
            flush=True,
        )
        check_number(name, preprocessed)
        if path.is_file():
            preprocess_dataset(name, processes)
        else:
            preprocess_dataset(name, processes, patch_size=triple(patch_size), preset=preset)

    elif rank() == 0:
        report = json.loads((preprocessed / REPORT).read_text())
        print_shares(name, set(case_names(existing_volumes(name))), set(report["failed"]))

    return json.loads(path.read_text()), existing_volumes(name)


def existing_volumes(name: str) -> Path:
    """The folder of the preprocessed volumes of a dataset. Raises UserError if there is none."""
    preprocessed = nnunet_folder("nnUNet_preprocessed") / name
    if not is_preprocessed(preprocessed):
        raise UserError(f"{name} is not preprocessed in {preprocessed}: run alice-preprocess first")

    plans = json.loads((preprocessed / f"{PRETRAIN_PLANS}.json").read_text())
    return preprocessed / plans["configurations"][CONFIGURATION]["data_identifier"]


def check_number(name: str, preprocessed: Path) -> None:
    """Raise UserError where a dataset has too few scans to pair, before they are preprocessed.

    Args:
        name: DatasetXXX_NAME.
        preprocessed: its folder there, whose volumes count too.
    """
    there = case_names(preprocessed / f"{PRETRAIN_PLANS}_{CONFIGURATION}")
    cases = {*open_raw_dataset(name).cases, *there}
    if len(cases) < FEWEST:
        raise too_few(len(cases))


def too_few(found: int) -> UserError:
    return UserError(
        f"pretraining needs at least {FEWEST} volumes of different people, found {found}"
    )


def check_preset(path: Path, name: str, preset: str) -> None:
    """Raise UserError where volumes were preprocessed for a preset of another spacing.

    Args:
        path: of the pretraining plans.
        name: DatasetXXX_NAME.
        preset: tiny, small or paper.
    """
    try:
        plans = json.loads(path.read_text(encoding="utf-8"))
        there = spacing_of(plans)
    except (ValueError, LookupError, TypeError):
        return  # whoever follows these plans says what is wrong with them

    made_for = presets_of(plans)
    if not made_for or preset in made_for:
        return

    raise UserError(
        f"{name} is preprocessed for preset {' and '.join(made_for)} ({millimetres(there)}), and "
        f"preset {preset} needs {millimetres(CROPS[preset].spacing)}. Use -preset {made_for[-1]}, "
        f"or replace these volumes (alice-preprocess -d {name} -preset {preset} --overwrite) and "
        f"their matcher (alice-embed -d {name} -preset {preset} --overwrite)"
    )


def is_preprocessed(preprocessed: Path) -> bool:
    """Whether alice-preprocess has finished in a dataset's folder, with at least one good case."""
    report = preprocessed / REPORT
    return report.is_file() and bool(json.loads(report.read_text())["ok"])


def split_cases(cases: list[str], share: float, seed: int) -> tuple[list[str], list[str]]:
    """Split cases at random into training and held-out ones (A.1).

    With a share above 0, at least one case is held out, if two remain for training.
    """
    if len(cases) < FEWEST:
        raise too_few(len(cases))

    held_out = 0
    if share:
        held_out = min(len(cases) - 2, max(1, round(share * len(cases))))

    order = np.random.default_rng((seed, 2)).permutation(len(cases))
    return (
        sorted(cases[i] for i in order[held_out:]),
        sorted(cases[i] for i in order[:held_out]),
    )
