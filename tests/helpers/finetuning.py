"""Stand-ins for tests of fine-tuning: a checkpoint with random weights, a small dataset."""

import json
import shutil
from pathlib import Path

import nibabel
import numpy as np
import torch
from nibabel.orientations import axcodes2ornt, ornt_transform

from alice_nnunet.finetuning.pretrained import PretrainedEncoder, as_json
from alice_nnunet.model.encoders.registry import build_encoder
from alice_nnunet.model.presets import PRESETS
from alice_nnunet.pretrain.datasets.pretrain_plans import resampling

SPACING = [3.0, 3.0, 3.0]  # mm
CROP = [16, 32, 32]  # voxels


def stock_plans(**changes) -> dict:
    """The entries of nnU-Net's own plans that matter here, for CT in the files' own orientation."""
    configuration = {
        "data_identifier": "nnUNetPlans_3d_fullres",
        "batch_size": 2,
        "patch_size": [28, 56, 60],
        "spacing": [3.05, 2.95, 3.0],
        "normalization_schemes": ["CTNormalization"],
        "use_mask_for_norm": [False],
    }
    return {
        "dataset_name": "Dataset007_Body",
        "plans_name": "nnUNetPlans",
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {"3d_fullres": configuration},
        "foreground_intensity_properties_per_channel": {
            "0": {"mean": 83.0, "std": 41.0, "percentile_00_5": -400.0, "percentile_99_5": 700.0}
        },
        **changes,
    }


def pretraining_data(**changes) -> dict:
    """How a checkpoint describes its data."""
    return {
        "dataset": "Dataset022_FLARE22",
        "orientation": "RAS",
        "axis_order": "zyx",
        "reader": "NibabelIOWithReorient",
        "transpose_forward": [0, 1, 2],
        "spacing": SPACING,
        "channels": [{"name": "CT", "scheme": "CTNormalization", "window": [-125.0, 255.0]}],
        "number_of_cases": 11,
        "case_list_sha256": "0" * 64,
        **changes,
    }


def pretraining_checkpoint(
    seed: int = 0, preset: str = "tiny", encoder: str = "vit", **data_changes
) -> dict:
    """What a checkpoint holds, with random weights of a tiny encoder whatever the preset's name."""
    torch.manual_seed(seed)
    arguments = {"in_channels": 1, "crop_size": CROP, **PRESETS[encoder]["tiny"].encoder}
    return {
        "network_weights": build_encoder(encoder, arguments).state_dict(),
        "step": 7,
        "config": {"encoder": encoder, "preset": preset, "encoder_arguments": arguments},
        "data": pretraining_data(**data_changes),
        "adaptation_plan": {},
    }


def pretrained_encoder(
    seed: int = 0, preset: str = "tiny", encoder: str = "vit", **data_changes
) -> PretrainedEncoder:
    """What load_pretrained would give for pretraining_checkpoint in /c.pth."""
    checkpoint = pretraining_checkpoint(seed, preset, encoder, **data_changes)
    return PretrainedEncoder(
        path="/c.pth",
        sha256="ab" * 32,
        name=encoder,
        arguments=as_json(checkpoint["config"]["encoder_arguments"]),
        data=checkpoint["data"],
        preset=preset,
        weights=checkpoint["network_weights"],
    )


def write_checkpoint(
    path: Path, seed: int = 0, preset: str = "tiny", encoder: str = "vit", **data_changes
) -> Path:
    """pretraining_checkpoint as a file."""
    torch.save(pretraining_checkpoint(seed, preset, encoder, **data_changes), path)
    return path


def write_case(path: Path, voxels: np.ndarray, codes: str = "LPS", spacing=SPACING) -> None:
    """Write a NIfTI file.

    Args:
        path: of the file.
        voxels: (x, y, z), along L, P, S.
        codes: axes of the file; the body is the same in any.
        spacing: mm (z, y, x).
    """
    path.parent.mkdir(parents=True, exist_ok=True)

    image = nibabel.Nifti1Image(voxels, np.diag([-spacing[2], -spacing[1], spacing[0], 1]))
    turn = ornt_transform(axcodes2ornt("LPS"), axcodes2ornt(codes))
    nibabel.save(image.as_reoriented(turn), path)


def write_dataset(
    raw: Path,
    ct: nibabel.Nifti1Image,
    name: str = "Dataset007_Body",
    cases: int = 5,
    labels: bool = True,
    codes: str = "LPS",
) -> Path:
    """Write crops of one CT as if they were cases with voxels of 3 mm.

    The one label is everything denser than fat. Returns the folder of the dataset.
    """
    folder = raw / name

    for index in range(cases):
        z = index % 3
        voxels = np.asarray(ct.dataobj)[index : index + 30, index : index + 32, z : z + 16]
        write_case(folder / "imagesTr" / f"case{index}_0000.nii.gz", voxels, codes)
        if labels:
            dense = (voxels > 0).astype(np.uint8)
            write_case(folder / "labelsTr" / f"case{index}.nii.gz", dense, codes)

    content = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "dense": 1},
        "numTraining": cases,
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


def plan_by_hand(raw: Path, preprocessed: Path) -> None:
    """Write nnU-Net's plans and fingerprint of a dataset without its planner, which takes seconds.

    Args:
        raw: folder of the dataset.
        preprocessed: new folder.
    """
    preprocessed.mkdir()
    plans = stock_plans(transpose_backward=[0, 1, 2], label_manager="LabelManager")
    plans["configurations"]["3d_fullres"] |= {
        **resampling(),
        "preprocessor_name": "DefaultPreprocessor",
        "batch_dice": False,
    }
    (preprocessed / "nnUNetPlans.json").write_text(json.dumps(plans))

    files = sorted((raw / "imagesTr").iterdir())
    fingerprint = {
        "spacings": [SPACING] * len(files),
        "shapes_after_crop": [list(nibabel.load(file).shape[::-1]) for file in files],
    }
    (preprocessed / "dataset_fingerprint.json").write_text(json.dumps(fingerprint))
    shutil.copy(raw / "dataset.json", preprocessed)
