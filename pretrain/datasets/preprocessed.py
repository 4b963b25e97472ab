"""What every command that learns from a dataset starts with: its preprocessed volumes, a split, a device."""

import json
from pathlib import Path

import numpy as np
import torch

from alice_nnunet.datasets.raw_dataset import nnunet_folder
from alice_nnunet.errors import UserError
from alice_nnunet.geometry import Triple
from alice_nnunet.names import CONFIGURATION, PRETRAIN_PLANS
from alice_nnunet.pretrain.datasets.preprocessing import REPORT, preprocess_dataset


def preprocessed_volumes(
    name: str, processes: int, spacing: tuple[float, float, float], patch_size: Triple
) -> tuple[dict, Path]:
    """Plans and folder of the preprocessed volumes of the dataset called name; preprocesses first where that is not done.

    spacing (mm), patch_size (voxels): for new plans; plans that exist are followed.
    """
    preprocessed = nnunet_folder("nnUNet_preprocessed") / name
    if not is_preprocessed(preprocessed):
        print(
            f"{name} is not (completely) preprocessed in {preprocessed}: doing that first",
            flush=True,
        )
        planned = (preprocessed / f"{PRETRAIN_PLANS}.json").is_file()
        preprocess_dataset(
            name,
            processes,
            spacing=None if planned else spacing,
            patch_size=None if planned else tuple(patch_size),
        )
    plans = json.loads((preprocessed / f"{PRETRAIN_PLANS}.json").read_text())
    return plans, preprocessed / plans["configurations"][CONFIGURATION]["data_identifier"]


def is_preprocessed(preprocessed: Path) -> bool:
    """Whether alice-preprocess came to its end there, with at least one good case. preprocessed: the dataset's folder."""
    report = preprocessed / REPORT
    return report.is_file() and bool(json.loads(report.read_text())["ok"])


def choose_device(asked: str | None) -> torch.device:
    """The device asked for, or cuda where there is one. Raises UserError where cuda is asked for and absent."""
    if asked == "cuda" and not torch.cuda.is_available():
        raise UserError("-device cuda: torch sees no CUDA device here; use -device cpu")
    return torch.device(asked or ("cuda" if torch.cuda.is_available() else "cpu"))


def split(cases: list[str], share: float, seed: int) -> tuple[list[str], list[str]]:
    """Training and held-out cases; at least one is held out where at least two remain for training (A.1)."""
    if len(cases) < 2:
        raise UserError(
            f"pretraining needs at least two preprocessed volumes of different people, found {len(cases)}"
        )
    count = min(len(cases) - 2, max(1, round(share * len(cases)))) if share else 0
    order = np.random.default_rng((seed, 2)).permutation(len(cases))
    return sorted(cases[i] for i in order[count:]), sorted(cases[i] for i in order[:count])
