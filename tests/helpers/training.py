"""nnU-Net's folders with a labeled dataset, and trainers as nnUNetv2_train makes them, for tests of fine-tuning."""

import json
import os
from collections.abc import Iterator
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
    """nnU-Net's variables and folders in root, with a labeled LPS dataset and c.pth. own_trainers: folders to look in."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("raw", "preprocessed", "results"):
            (root / name).mkdir()
            patch.setenv(f"nnUNet_{name}", str(root / name))
        folders = [*alice_nnunet.trainers.__path__, *map(str, own_trainers)]
        for name, value in {
            "nnUNet_extTrainer": os.pathsep.join(folders),
            "nnUNet_n_proc_DA": "0",
            "nnUNet_compile": "f",
            "nnUNet_def_n_proc": "1",
            "OMP_NUM_THREADS": "1",
            "OMP_WAIT_POLICY": "PASSIVE",
        }.items():  # nnU-Net takes all cores; spinning on busy ones is slow
            patch.setenv(name, value)
        patch.delenv("alice_weights", raising=False)
        write_dataset(root / "raw", ct)
        write_checkpoint(root / "c.pth")
        yield


def make(
    folder: Path,
    cls=AliceTrainer,
    plans: str = "AlicePlans",
    configuration: str = "3d_fullres",
    fold: int = 0,
    going_on: bool = False,
) -> AliceTrainer:
    """A trainer as nnUNetv2_train makes it."""
    preprocessed = folder / "preprocessed" / NAME
    content = json.loads((preprocessed / f"{plans}.json").read_text()) | {
        "continue_training": going_on
    }
    return cls(
        content,
        configuration,
        fold,
        json.loads((preprocessed / "dataset.json").read_text()),
        torch.device("cpu"),
    )


def refusal(capsys, action) -> str:
    """The one line with which action exits 2."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        action()
    text = capsys.readouterr().err
    assert stopped.value.code == 2 and text.startswith("nnUNetv2_train: ") and text.count("\n") == 1
    return text


def plan_on_the_same_data(folder: Path, encoder: str, name: str, *options: str) -> None:
    """Plans for random weights of an encoder in folder/encoder.pth, which use the cases that AlicePlans preprocessed."""
    write_checkpoint(folder / f"{encoder}.pth", encoder=encoder)
    alice_plan(
        ["-d", "7", "-weights", str(folder / f"{encoder}.pth"), "-n", name, "-np", "1", *options]
    )
    plans = folder / "preprocessed" / NAME / f"{name}.json"
    content = json.loads(plans.read_text())
    content["configurations"]["3d_fullres"]["data_identifier"] = "AlicePlans_3d_fullres"
    plans.write_text(json.dumps(content))
