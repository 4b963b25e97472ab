"""AlicePretrainPlans: nnU-Net plans for data without labels."""

import hashlib
import json
from pathlib import Path

import nibabel
import numpy as np
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import (
    ExperimentPlanner,
)
from nnunetv2.imageio.nibabel_reader_writer import NibabelIOWithReorient
from nnunetv2.preprocessing.cropping.cropping import crop_to_nonzero
from nnunetv2.preprocessing.normalization.map_channel_name_to_normalization import (
    get_normalization_scheme,
)
from nnunetv2.preprocessing.resampling.default_resampling import compute_new_shape
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from alice_nnunet.datasets.raw_dataset import RawDataset
from alice_nnunet.datasets.raw_image import check_header, read_case
from alice_nnunet.errors import UserError
from alice_nnunet.names import CONFIGURATION, PRETRAIN_PLANS

SPACING = (1.5, 0.76, 0.76)  # mm, (z, y, x); Alice, Sec. 4.1
PATCH_SIZE = (64, 192, 192)  # voxels, (z, y, x)
WINDOW = (-125.0, 255.0)  # HU
READER = NibabelIOWithReorient.__name__
CASES_FOR_NORM = 20  # cases that are read to decide use_mask_for_norm


def make_plans(
    raw: RawDataset, spacing: tuple[float, float, float], patch_size: tuple[int, int, int]
) -> dict:
    """Plans that nnU-Net's PlansManager reads. spacing: mm; patch_size: voxels of a crop; both (z, y, x)."""
    median_spacing, median_shape = median_geometry(raw, spacing, patch_size)
    channels = list(raw.dataset_json["channel_names"].values())
    schemes = [get_normalization_scheme(channel) for channel in channels]
    return {
        "dataset_name": raw.name,
        "plans_name": PRETRAIN_PLANS,
        "original_median_spacing_after_transp": median_spacing,
        "original_median_shape_after_transp": median_shape,
        "image_reader_writer": READER,
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "channel_names": channels,
        "configurations": {
            CONFIGURATION: {
                "data_identifier": f"{PRETRAIN_PLANS}_{CONFIGURATION}",
                "preprocessor_name": "DefaultPreprocessor",
                "batch_size": 8,
                "patch_size": list(patch_size),
                "median_image_size_in_voxels": compute_new_shape(
                    median_shape, median_spacing, spacing
                ).tolist(),
                "spacing": list(spacing),
                "normalization_schemes": [scheme.__name__ for scheme in schemes],
                "use_mask_for_norm": use_mask_for_norm(raw, schemes),
                **resampling(),
                "batch_dice": False,
                "architecture": {
                    "network_class_name": "alice_nnunet.model.vit.ViT",
                    "arch_kwargs": {},
                    "_kw_requires_import": [],
                },
            }
        },
        "experiment_planner_used": "alice-preprocess",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {
            str(i): window_properties() if scheme.__name__ == "CTNormalization" else {}
            for i, scheme in enumerate(schemes)
        },
    }


def window_properties() -> dict[str, float]:
    """Statistics with which nnU-Net's CTNormalization clips to WINDOW and maps it to 0..1."""
    low, high = WINDOW
    return {
        "max": high,
        "mean": low,
        "median": (low + high) / 2,
        "min": low,
        "percentile_00_5": low,
        "percentile_99_5": high,
        "std": high - low,
    }


def resampling() -> dict:
    """The resampling entries as nnU-Net's own planner writes them."""
    data, data_kwargs, seg, seg_kwargs = ExperimentPlanner.determine_resampling(None)
    probabilities, probabilities_kwargs = (
        ExperimentPlanner.determine_segmentation_softmax_export_fn(None)
    )
    return {
        "resampling_fn_data": data.__name__,
        "resampling_fn_seg": seg.__name__,
        "resampling_fn_data_kwargs": data_kwargs,
        "resampling_fn_seg_kwargs": seg_kwargs,
        "resampling_fn_probabilities": probabilities.__name__,
        "resampling_fn_probabilities_kwargs": probabilities_kwargs,
    }


def median_geometry(
    raw: RawDataset, spacing: tuple[float, float, float], patch_size: tuple[int, int, int]
) -> tuple[list[float], list[int]]:
    """Median spacing (mm) and size (voxels) of the readable cases in RAS, (z, y, x), from their headers.

    Where no case is readable they are the target spacing and the crop size.
    """
    found = []
    for files in raw.cases.values():
        try:
            shape, affine = check_header(files[0])
        except ValueError:
            continue
        found.append((nibabel.affines.voxel_sizes(affine)[::-1], shape[::-1]))
    if not found:
        return list(spacing), list(patch_size)
    spacings, shapes = zip(*found)
    return np.median(spacings, 0).tolist(), [round(n) for n in np.median(shapes, 0)]


def use_mask_for_norm(raw: RawDataset, schemes: list[type]) -> list[bool]:
    """nnU-Net's rule: normalise inside the nonzero region where cropping to it takes away over a quarter."""
    wanted = [
        scheme.leaves_pixels_outside_mask_at_zero_if_use_mask_for_norm_is_true for scheme in schemes
    ]
    if not any(wanted):
        return wanted
    shares = []
    for files in raw.cases.values():
        try:
            image, _ = read_case(files, NibabelIOWithReorient())
        except ValueError:
            continue
        if image.any():
            shares.append(crop_to_nonzero(image)[0].size / image.size)
        if len(shares) == CASES_FOR_NORM:
            break
    return wanted if shares and np.median(shares) < 3 / 4 else [False] * len(schemes)


def load_plans(path: Path, dataset_json: dict) -> dict:
    """Plans that may have been edited by hand. Raises UserError where preprocessing could not follow them."""
    try:
        plans = json.loads(path.read_text(encoding="utf-8"))
        PlansManager(plans)
        problem = what_is_wrong(plans, list(dataset_json["channel_names"].values()))
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        problem = f"{type(error).__name__}: {error}"
    if problem:
        raise UserError(f"{path} cannot be used ({problem}): mend it, or delete it for new plans")
    return plans


def what_is_wrong(plans: dict, channels: list[str]) -> str | None:
    """The first thing in plans that preprocessing or pretraining cannot follow, None if there is none.

    channels: names from dataset.json. Raises LookupError or TypeError where the plans are no plans at all.
    """
    configuration = plans["configurations"][CONFIGURATION]
    if plans["channel_names"] != channels:
        return f"it is for the channels {plans['channel_names']}, dataset.json names {channels}"
    if plans["image_reader_writer"] != READER or plans["transpose_forward"] != [0, 1, 2]:
        return f"image_reader_writer must be {READER} and transpose_forward [0, 1, 2], one orientation for all"
    for key, kind in (("spacing", (int, float)), ("patch_size", int)):
        if len(configuration[key]) != 3 or not all(
            isinstance(n, kind) and n > 0 for n in configuration[key]
        ):
            return f"{key} must be three positive numbers, got {configuration[key]}"
    for key in ("normalization_schemes", "use_mask_for_norm"):
        if len(configuration[key]) != len(channels):
            return f"{key} must have one entry for each of the channels {channels}, got {configuration[key]}"
    for i, window in enumerate(channel_windows(plans)):
        known = plans["foreground_intensity_properties_per_channel"][str(i)]
        if window and (known["mean"], known["mean"] + known["std"]) != window:
            return f"channel {i}: mean must be percentile_00_5, and std the width of the window"
    return None


def channel_windows(plans: dict) -> list[tuple[float, float] | None]:
    """Bottom and top in HU of each CT channel's window, None for a channel that is no CT."""
    schemes = plans["configurations"][CONFIGURATION]["normalization_schemes"]
    known = [
        plans["foreground_intensity_properties_per_channel"][str(i)] for i in range(len(schemes))
    ]
    return [
        (k["percentile_00_5"], k["percentile_99_5"]) if scheme == "CTNormalization" else None
        for k, scheme in zip(known, schemes)
    ]


def plans_sha256(plans: dict) -> str:
    """SHA-256 of everything in the plans that changes a preprocessed case; the crop size does not."""
    of_all = (
        "image_reader_writer",
        "transpose_forward",
        "channel_names",
        "foreground_intensity_properties_per_channel",
    )
    of_configuration = (
        "preprocessor_name",
        "spacing",
        "normalization_schemes",
        "use_mask_for_norm",
        "resampling_fn_data",
        "resampling_fn_data_kwargs",
        "resampling_fn_seg",
        "resampling_fn_seg_kwargs",
    )
    content = {key: plans[key] for key in of_all}
    content |= {key: plans["configurations"][CONFIGURATION][key] for key in of_configuration}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def data_description(plans: dict, cases: list[str]) -> dict:
    """What a checkpoint must know of the data it was trained on, in plain values."""
    configuration = plans["configurations"][CONFIGURATION]
    channels = [
        {"name": name, "scheme": scheme, "window": list(window) if window else None}
        for name, scheme, window in zip(
            plans["channel_names"], configuration["normalization_schemes"], channel_windows(plans)
        )
    ]
    return {
        "dataset": plans["dataset_name"],
        "orientation": "RAS",
        "axis_order": "zyx",
        "reader": plans["image_reader_writer"],
        "transpose_forward": list(plans["transpose_forward"]),
        "spacing": list(configuration["spacing"]),
        "channels": channels,
        "number_of_cases": len(cases),
        "case_list_sha256": hashlib.sha256("\n".join(sorted(cases)).encode()).hexdigest(),
    }
