"""nnU-Net's plans as plain data, and plans that match a pretraining derived from them.

Sizes in voxels and spacings in mm, as lists in nnU-Net's (z, y, x) order.
"""

from bisect import bisect_right
from collections.abc import Callable

import numpy as np

from alice_nnunet.finetuning.compatibility import (
    other_channels,
    pretraining_channel,
    spacing_differs,
)
from alice_nnunet.errors import UserError
from alice_nnunet.finetuning.network import alice_block
from alice_nnunet.geometry import Triple, ceil_to
from alice_nnunet.names import CONFIGURATION

NETWORK_CLASS = {
    "vit": "alice_nnunet.networks.unetr.UNETR",
    "swin": "alice_nnunet.networks.swin_unetr.SwinUNETR",
    "nnformer": "alice_nnunet.networks.nnformer.NnFormerNet",
}
STRIDES = [[1, 1, 1]] + 4 * [[2, 2, 2]]  # of a decoder, which nnU-Net wants to see in every plans
SHARE_IN_A_BATCH = 0.05  # nnU-Net's: no batch sees more of a dataset's voxels
SMALLEST_BATCH = 2  # nnU-Net's
GB = 1024**3


def configuration_of(plans: dict, name: str) -> dict:
    """A configuration of plans with what it inherits. Raises UserError if there is none, if it is 2D or of a cascade."""
    known = plans["configurations"]
    if name not in known:
        raise UserError(
            f"the plans {plans['plans_name']} have no configuration {name}; they have {', '.join(known)}"
        )
    configuration = known[name]
    while parent := configuration.get("inherits_from"):
        configuration = {
            **known[parent],
            "inherits_from": known[parent].get("inherits_from"),
            **{key: value for key, value in configuration.items() if key != "inherits_from"},
        }
    if len(configuration["patch_size"]) != 3 or configuration.get("previous_stage"):
        raise UserError(
            f"the configuration {name} is 2D or a cascade; the pretrained encoders are for 3D volumes, "
            f"use {CONFIGURATION}"
        )
    return {key: value for key, value in configuration.items() if key != "inherits_from"}


def sizes_at(spacing: list[float], sizes: list, spacings: list) -> np.ndarray:
    """Sizes (N, 3) of N cases after resampling to spacing, rounded as nnU-Net does."""
    return np.round(np.array(spacings) / np.array(spacing) * np.array(sizes))


def choose_patch(
    given: list[int] | None, largest: list[int], median: np.ndarray, unit: Triple
) -> list[int]:
    """Patch size in voxels: the given one, else largest with every axis limited to the median size of the cases.

    unit: of the encoder, in voxels. Raises UserError where the given one is no positive multiple of it.
    """
    if given is None:
        return [
            min(a, b)
            for a, b in zip(ceil_to(tuple(largest), unit), ceil_to(tuple(map(int, median)), unit))
        ]
    if any(g <= 0 or g % u for g, u in zip(given, unit)):
        raise UserError(
            f"a patch size must be a multiple of {unit} voxels (z, y, x), got {given}; the next one is "
            f"{list(ceil_to(tuple(max(1, g) for g in given), unit))}"
        )
    return list(given)


def choose_batch(wanted: int, patch: list[int], voxels: float) -> int:
    """Batch size: wanted, limited to a share of the dataset's voxels as in nnU-Net, at least 2."""
    return max(
        min(wanted, round(voxels * SHARE_IN_A_BATCH / float(np.prod(patch)))), SMALLEST_BATCH
    )


def fit_memory(
    patch: list[int],
    batch: int,
    median: np.ndarray,
    unit: Triple,
    budget: float,
    memory: Callable[[list[int], int], int],
    may_change: tuple[bool, bool] = (True, True),
) -> tuple[list[int], int]:
    """Patch and batch within a budget: a smaller batch first, down to 2, then a smaller patch, by a unit along the axis that is
    longest for the median size of the cases, as nnU-Net does.

    budget: bytes. memory: (patch, batch) -> bytes. may_change: patch, batch. Raises UserError where nothing fits.
    """
    if may_change[1] and batch > SMALLEST_BATCH:
        fitting = bisect_right(
            range(SMALLEST_BATCH, batch + 1), budget, key=lambda size: memory(patch, size)
        )
        batch = SMALLEST_BATCH + max(0, fitting - 1)
    while (needed := memory(patch, batch)) > budget:
        longest = max(
            (axis for axis in range(3) if patch[axis] > unit[axis]),
            key=lambda axis: patch[axis] / median[axis],
            default=None,
        )
        if not may_change[0] or longest is None:
            raise UserError(
                f"a patch of {' x '.join(map(str, patch))} and a batch of {batch} take some {needed / GB:.3g} GB and only "
                f"{budget / GB:.3g} GB are to be used; give a smaller -patch or -batch, a larger -gpu_memory, or use "
                f"weights of a smaller preset"
            )
        patch = [size - unit[axis] * (axis == longest) for axis, size in enumerate(patch)]
    return patch, batch


def window_statistics(statistics: dict, window: list[float] | None) -> dict:
    """Intensity statistics of a channel with which nnU-Net's CTNormalization is: clip to window (HU), scale to 0..1."""
    if window is None:
        return statistics
    low, high = window
    return {
        **statistics,
        "mean": low,
        "std": high - low,
        "percentile_00_5": low,
        "percentile_99_5": high,
    }


def matched_plans(
    base: dict,
    name: str,
    checkpoint: dict,
    path: str,
    sha256: str,
    recipe: dict,
    spacing: list[float],
    patch: list[int],
    batch: int,
    sizes: list,
    spacings: list,
) -> dict:
    """Plans called name for fine-tuning from a checkpoint: its window, orientation and network.

    base: nnU-Net's own plans of the dataset. checkpoint: load_pretraining(path), sha256: of that file. recipe: as
    training_recipe gives it. spacing: another one than the pretraining's is written down as accepted.
    sizes, spacings: of the cases, (N, 3), in the canonical orientation.
    """
    data, inherited = checkpoint["data"], configuration_of(base, CONFIGURATION)
    channels = len(inherited["normalization_schemes"])
    others = other_channels(data, inherited["normalization_schemes"], path)
    statistics = dict(base["foreground_intensity_properties_per_channel"])
    for index in range(channels):
        if index not in others:
            window = pretraining_channel(data, index, channels, path)["window"]
            statistics[str(index)] = window_statistics(statistics[str(index)], window)
    configuration = {
        **inherited,
        "data_identifier": f"{name}_{CONFIGURATION}",
        "batch_size": batch,
        "patch_size": patch,
        "median_image_size_in_voxels": np.median(sizes_at(spacing, sizes, spacings), 0).tolist(),
        "spacing": list(spacing),
    }
    plans = {
        **base,
        "plans_name": name,
        "original_median_spacing_after_transp": np.median(spacings, 0).tolist(),
        "original_median_shape_after_transp": np.median(sizes, 0).round().astype(int).tolist(),
        "image_reader_writer": data["reader"],
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {CONFIGURATION: configuration},
        "foreground_intensity_properties_per_channel": statistics,
    }
    plans["alice"] = alice_block(
        checkpoint, path, sha256, plans, configuration, recipe, flip_axes=[]
    )
    if spacing_differs(spacing, data["spacing"]):
        plans["alice"]["accepted_spacing"] = list(spacing)
    configuration["architecture"] = {
        "network_class_name": NETWORK_CLASS[plans["alice"]["encoder"]],
        "arch_kwargs": {
            "encoder_arguments": plans["alice"]["encoder_arguments"],
            "input_map": plans["alice"]["input"],
            **plans["alice"]["network_arguments"],
            "strides": STRIDES,
        },
        "_kw_requires_import": [],
    }
    return plans
