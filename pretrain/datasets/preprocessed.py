"""The preprocessed volumes of a dataset, made where they are missing, and their split."""

import json
from pathlib import Path

import numpy as np

from alice_nnunet.environment import nnunet_folder
from alice_nnunet.errors import UserError
from alice_nnunet.geometry import Spacing, Triple, triple
from alice_nnunet.names import CONFIGURATION, PRETRAIN_PLANS
from alice_nnunet.pretrain.datasets.preprocessing import REPORT, preprocess_dataset


def preprocessed_volumes(
    name: str, processes: int, spacing: Spacing, patch_size: Triple
) -> tuple[dict, Path]:
    """Find the preprocessed volumes of a dataset, or preprocess it.

    Args:
        name: DatasetXXX_NAME.
        processes: number of processes that preprocess.
        spacing: mm, for new plans; existing plans are followed.
        patch_size: voxels, for new plans.

    Returns:
        The pretraining plans and the folder of the volumes.
    """
    preprocessed = nnunet_folder("nnUNet_preprocessed") / name
    path = preprocessed / f"{PRETRAIN_PLANS}.json"

    if not is_preprocessed(preprocessed):
        print(
            f"{name} is not (completely) preprocessed in {preprocessed}: this comes first",
            flush=True,
        )
        if path.is_file():
            preprocess_dataset(name, processes)
        else:
            preprocess_dataset(name, processes, spacing=spacing, patch_size=triple(patch_size))

    plans = json.loads(path.read_text())
    return plans, preprocessed / plans["configurations"][CONFIGURATION]["data_identifier"]


def is_preprocessed(preprocessed: Path) -> bool:
    """Whether alice-preprocess has finished in a dataset's folder, with at least one good case."""
    report = preprocessed / REPORT
    return report.is_file() and bool(json.loads(report.read_text())["ok"])


def split_cases(cases: list[str], share: float, seed: int) -> tuple[list[str], list[str]]:
    """Split cases at random into training and held-out ones (A.1).

    With a share above 0, at least one case is held out, if two remain for training.
    """
    if len(cases) < 2:
        raise UserError(
            f"pretraining needs at least two preprocessed volumes of different people, "
            f"found {len(cases)}"
        )

    held_out = 0
    if share:
        held_out = min(len(cases) - 2, max(1, round(share * len(cases))))

    order = np.random.default_rng((seed, 2)).permutation(len(cases))
    return (
        sorted(cases[i] for i in order[held_out:]),
        sorted(cases[i] for i in order[:held_out]),
    )
