"""nnU-Net's folders with a labeled dataset, and trainers as nnUNetv2_train makes them."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import nibabel
import pytest
import torch

import alice_nnunet.trainers
from alice_nnunet.commands.plan import main as alice_plan
from alice_nnunet.trainers.alice_trainer import AliceTrainer
from tests.helpers.finetuning import write_checkpoint, write_dataset

NAME = "Dataset007_Body"


@contextmanager
def workplace_in(root: Path, ct: nibabel.Nifti1Image, *own_trainers: Path) -> Iterator[None]:
    """Make nnU-Net's folders in root, with a labeled dataset stored as LPS and c.pth.

    Args:
        root: existing folder.
        ct: that the dataset is cropped from.
        *own_trainers: more folders in which nnU-Net looks for trainers.
    """
    folders = [*alice_nnunet.trainers.__path__, *map(str, own_trainers)]
    variables = {
        "nnUNet_extTrainer": os.pathsep.join(folders),
        "nnUNet_n_proc_DA": "0",
        "nnUNet_compile": "f",
        # nnU-Net takes all cores, and spinning on busy ones is slow
        "nnUNet_def_n_proc": "1",
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
    }

    with pytest.MonkeyPatch.context() as patch:
        for name in ("raw", "preprocessed", "results"):
            (root / name).mkdir()
            patch.setenv(f"nnUNet_{name}", str(root / name))
        for name, value in variables.items():
            patch.setenv(name, value)
        patch.delenv("alice_weights", raising=False)

        write_dataset(root / "raw", ct)
        write_checkpoint(root / "c.pth")
        yield


def plan(folder: Path, *options: str, weights: str = "c.pth") -> None:
    """alice-plan for the dataset and weights in folder."""
    alice_plan(["-d", "7", "-weights", str(folder / weights), "-np", "1", *options])


def plan_on_the_same_data(folder: Path, encoder: str, name: str, *options: str) -> None:
    """Plan for random weights of an encoder, with the cases that AlicePlans preprocessed.

    Args:
        folder: workplace; the weights are written to encoder.pth in it.
        encoder: vit, swin or nnformer.
        name: of the plans.
        *options: of alice-plan.
    """
    write_checkpoint(folder / f"{encoder}.pth", encoder=encoder)
    plan(folder, "-n", name, *options, weights=f"{encoder}.pth")

    path = folder / "preprocessed" / NAME / f"{name}.json"
    content = json.loads(path.read_text())
    content["configurations"]["3d_fullres"]["data_identifier"] = "AlicePlans_3d_fullres"
    path.write_text(json.dumps(content))


def make(
    folder: Path,
    cls: type[AliceTrainer] = AliceTrainer,
    plans: str = "AlicePlans",
    configuration: str = "3d_fullres",
    fold: int = 0,
    going_on: bool = False,
) -> AliceTrainer:
    """A trainer as nnUNetv2_train makes it."""
    preprocessed = folder / "preprocessed" / NAME
    content = json.loads((preprocessed / f"{plans}.json").read_text())
    dataset = json.loads((preprocessed / "dataset.json").read_text())

    content["continue_training"] = going_on
    return cls(content, configuration, fold, dataset, torch.device("cpu"))


def refusal(capsys, action: Callable[[], object]) -> str:
    """The one line with which action exits 2."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        action()

    text = capsys.readouterr().err
    assert stopped.value.code == 2
    assert text.startswith("nnUNetv2_train: ") and text.count("\n") == 1
    return text
