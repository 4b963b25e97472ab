"""AlicePretrainPlans: nnU-Net plans for data without labels."""

import hashlib
import json
from pathlib import Path

import numpy as np
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import (
    ExperimentPlanner,
)
from nnunetv2.imageio.nibabel_reader_writer import NibabelIOWithReorient
from nnunetv2.preprocessing.cropping.cropping import crop_to_nonzero
from nnunetv2.preprocessing.normalization.default_normalization_schemes import (
    ImageNormalization,
)
from nnunetv2.preprocessing.normalization.map_channel_name_to_normalization import (
    get_normalization_scheme,
)
from nnunetv2.preprocessing.resampling.default_resampling import compute_new_shape
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from alice_nnunet.data.volumes import case_list_sha256
from alice_nnunet.datasets.raw_dataset import RawDataset
from alice_nnunet.datasets.raw_image import check_header, read_case
from alice_nnunet.errors import UserError
from alice_nnunet.geometry import Spacing, Triple
from alice_nnunet.model.presets import CROPS, presets_with_spacing
from alice_nnunet.names import CONFIGURATION, PRETRAIN_PLANS

PRESET = "paper"  # of new plans where nothing else is asked for
SPACING = CROPS[PRESET].spacing  # mm, (z, y, x); Alice, Sec. 4.1
PATCH_SIZE = CROPS[PRESET].size  # voxels, (z, y, x)
WINDOW = (-125.0, 255.0)  # HU
READER = NibabelIOWithReorient.__name__
CASES_FOR_NORM = 20  # cases that are read to decide use_mask_for_norm


def make_plans(
    raw: RawDataset, spacing: Spacing, patch_size: Triple, preset: str | None = None
) -> dict:
    """Make plans that nnU-Net's PlansManager reads.

    Args:
        raw: the unlabeled dataset.
        spacing: mm, (z, y, x).
        patch_size: voxels of a crop, (z, y, x).
        preset: that the spacing is of, None for one that the user chose.
    """
    median_spacing, median_shape = median_geometry(raw, spacing, patch_size)
    median_size = compute_new_shape(median_shape, median_spacing, spacing).tolist()

    channels = list(raw.dataset_json["channel_names"].values())
    schemes = [get_normalization_scheme(channel) for channel in channels]

    configuration = {
        "data_identifier": f"{PRETRAIN_PLANS}_{CONFIGURATION}",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 8,
        "patch_size": list(patch_size),
        "median_image_size_in_voxels": median_size,
        "spacing": list(spacing),
        "normalization_schemes": [scheme.__name__ for scheme in schemes],
        "use_mask_for_norm": use_mask_for_norm(raw, schemes),
        **resampling(),
        "batch_dice": False,
        # nnU-Net wants an architecture in all plans; pretraining does not read it.
        "architecture": {
            "network_class_name": "alice_nnunet.model.vit.ViT",
            "arch_kwargs": {},
            "_kw_requires_import": [],
        },
    }

    return {
        "dataset_name": raw.name,
        "plans_name": PRETRAIN_PLANS,
        "preset": preset,
        "original_median_spacing_after_transp": median_spacing,
        "original_median_shape_after_transp": median_shape,
        "image_reader_writer": READER,
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "channel_names": channels,
        "configurations": {CONFIGURATION: configuration},
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

    # It clips to the percentiles, subtracts the mean and divides by std. It reads nothing else.
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
    raw: RawDataset, spacing: Spacing, patch_size: Triple
) -> tuple[list[float], list[int]]:
    """Median spacing (mm) and size (voxels) of the readable cases in RAS, (z, y, x).

    They come from the headers. If no case is readable, they are the target spacing and patch size.
    """
    spacings = []
    sizes = []
    for files in raw.cases.values():
        geometry, _ = check_header(files[0])
        if geometry is not None:
            turned = geometry.reoriented()
            spacings.append(turned.spacing[::-1])
            sizes.append(turned.shape[::-1])

    if not spacings:
        return list(spacing), list(patch_size)
    return np.median(spacings, 0).tolist(), [round(n) for n in np.median(sizes, 0)]


def use_mask_for_norm(raw: RawDataset, schemes: list[type[ImageNormalization]]) -> list[bool]:
    """Whether to normalize each channel inside its nonzero region, by nnU-Net's rule.

    That is where cropping to the nonzero region removes more than a quarter of the median volume.
    """
    wanted = [
        scheme.leaves_pixels_outside_mask_at_zero_if_use_mask_for_norm_is_true for scheme in schemes
    ]
    if not any(wanted):
        return wanted

    shares = []  # of the voxels that cropping leaves
    for files in raw.cases.values():
        try:
            image, _, _ = read_case(files, NibabelIOWithReorient())
        except ValueError:
            continue
        if image.any():
            shares.append(crop_to_nonzero(image)[0].size / image.size)
        if len(shares) == CASES_FOR_NORM:
            break

    if shares and np.median(shares) < 3 / 4:
        return wanted
    return [False] * len(schemes)


def load_plans(path: Path, dataset_json: dict) -> dict:
    """Read plans, perhaps edited by hand. Raises UserError if preprocessing cannot follow them."""
    try:
        plans = json.loads(path.read_text(encoding="utf-8"))
        PlansManager(plans)
        problem = find_problem(plans, list(dataset_json["channel_names"].values()))
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        problem = f"{type(error).__name__}: {error}"

    if problem:
        raise UserError(
            f"{path} cannot be used ({problem}): correct it, or delete it for new plans"
        )
    return plans


def find_problem(plans: dict, channels: list[str]) -> str | None:
    """The first thing in plans that preprocessing or pretraining cannot follow, or None.

    Args:
        plans: content of the plans' file.
        channels: names from dataset.json.

    Raises:
        LookupError, TypeError: the content is not plans at all.
    """
    if plans["channel_names"] != channels:
        return f"it is for the channels {plans['channel_names']}, dataset.json names {channels}"

    if plans["image_reader_writer"] != READER or plans["transpose_forward"] != [0, 1, 2]:
        return (
            f"image_reader_writer must be {READER} and transpose_forward [0, 1, 2], "
            f"one orientation for all"
        )

    configuration = plans["configurations"][CONFIGURATION]
    for key, kind in (("spacing", (int, float)), ("patch_size", int)):
        numbers = configuration[key]
        if len(numbers) != 3 or not all(isinstance(n, kind) and n > 0 for n in numbers):
            return f"{key} must be three positive numbers, got {numbers}"

    for key in ("normalization_schemes", "use_mask_for_norm"):
        if len(configuration[key]) != len(channels):
            return (
                f"{key} must have one entry for each of the channels {channels}, "
                f"got {configuration[key]}"
            )

    for i, window in enumerate(channel_windows(plans)):
        statistics = plans["foreground_intensity_properties_per_channel"][str(i)]
        if window and (statistics["mean"], statistics["mean"] + statistics["std"]) != window:
            return f"channel {i}: mean must be percentile_00_5, and std the width of the window"
    return None


def channel_windows(plans: dict) -> list[tuple[float, float] | None]:
    """Bottom and top in HU of each CT channel's window; None for a channel that is not CT."""
    windows: list[tuple[float, float] | None] = []

    schemes = plans["configurations"][CONFIGURATION]["normalization_schemes"]
    for i, scheme in enumerate(schemes):
        statistics = plans["foreground_intensity_properties_per_channel"][str(i)]
        if scheme == "CTNormalization":
            windows.append((statistics["percentile_00_5"], statistics["percentile_99_5"]))
        else:
            windows.append(None)

    return windows


# The entries that change a preprocessed case. The crop size is not among them.
DECIDING = (
    "image_reader_writer",
    "transpose_forward",
    "channel_names",
    "foreground_intensity_properties_per_channel",
)
DECIDING_IN_CONFIGURATION = (
    "preprocessor_name",
    "spacing",
    "normalization_schemes",
    "use_mask_for_norm",
    "resampling_fn_data",
    "resampling_fn_data_kwargs",
    "resampling_fn_seg",
    "resampling_fn_seg_kwargs",
)


def plans_sha256(plans: dict) -> str:
    """SHA-256 of everything in the plans that changes a preprocessed case."""
    configuration = plans["configurations"][CONFIGURATION]
    content = {key: plans[key] for key in DECIDING}
    content |= {key: configuration[key] for key in DECIDING_IN_CONFIGURATION}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def spacing_of(plans: dict) -> Spacing:
    """mm, (z, y, x), of preprocessed volumes."""
    z, y, x = plans["configurations"][CONFIGURATION]["spacing"]
    return (z, y, x)


def presets_of(plans: dict) -> list[str]:
    """The presets whose spacing preprocessed volumes have; none for a spacing of the user's."""
    if "preset" in plans and plans["preset"] is None:
        return []
    return presets_with_spacing(spacing_of(plans))


def data_description(plans: dict, cases: list[str]) -> dict:
    """What a checkpoint must know of the data it was trained on, in plain values."""
    configuration = plans["configurations"][CONFIGURATION]

    channels = []
    for name, scheme, window in zip(
        plans["channel_names"], configuration["normalization_schemes"], channel_windows(plans)
    ):
        channels.append(
            {"name": name, "scheme": scheme, "window": list(window) if window else None}
        )

    return {
        "dataset": plans["dataset_name"],
        "orientation": "RAS",
        "axis_order": "zyx",
        "reader": plans["image_reader_writer"],
        "transpose_forward": list(plans["transpose_forward"]),
        "spacing": list(configuration["spacing"]),
        "channels": channels,
        "number_of_cases": len(cases),
        "case_list_sha256": case_list_sha256(cases),
    }
