"""Patch and batch sizes, in voxels along nnU-Net's (z, y, x)."""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from alice_nnunet.errors import UserError
from alice_nnunet.geometry import Triple, ceil_to
from alice_nnunet.memory import GB
from alice_nnunet.text import voxels

SHARE_IN_A_BATCH = 0.05  # nnU-Net's: no batch shows more of a dataset's voxels
SMALLEST_BATCH = 2  # nnU-Net's


def sizes_at(spacing: list[float], sizes: list, spacings: list) -> np.ndarray:
    """Sizes (N, 3) of N cases after resampling to a spacing, rounded as in nnU-Net."""
    return np.round(np.array(spacings) / np.array(spacing) * np.array(sizes))


def check_patch(patch: list[int], unit: Triple) -> None:
    """Raise UserError if a patch is not a positive multiple of the encoder's unit."""
    if any(size <= 0 or size % step for size, step in zip(patch, unit)):
        following = ceil_to([max(1, size) for size in patch], unit)
        raise UserError(
            f"a patch size must be a multiple of {unit} voxels (z, y, x), got {patch}; the next "
            f"one is {list(following)}"
        )


def patch_within(largest: Sequence[int], median: np.ndarray, unit: Triple) -> list[int]:
    """The largest patch whose axes are no longer than those of the median case.

    Args:
        largest: patch size to start from.
        median: size of the cases.
        unit: of the encoder; both sizes are rounded up to it.
    """
    size = [int(length) for length in median]
    return [min(a, b) for a, b in zip(ceil_to(largest, unit), ceil_to(size, unit))]


def batch_within(wanted: int, patch: list[int], dataset_voxels: float) -> int:
    """Batch size: wanted, limited to a share of the dataset's voxels as in nnU-Net, at least 2."""
    most = round(dataset_voxels * SHARE_IN_A_BATCH / float(np.prod(patch)))
    return max(min(wanted, most), SMALLEST_BATCH)


@dataclass(frozen=True)
class Reduction:
    """How patch and batch may be reduced to fit a GPU.

    Attributes:
        unit: of the encoder, the step by which a patch is reduced.
        median: size of the cases.
        patch: whether the patch may be reduced.
        batch: whether the batch may be reduced.
    """

    unit: Triple
    median: np.ndarray
    patch: bool = True
    batch: bool = True


def fit_memory(
    patch: list[int],
    batch: int,
    budget: float,
    memory: Callable[[list[int], int], int],
    reduction: Reduction,
) -> tuple[list[int], int]:
    """Reduce patch and batch until a training step fits a budget.

    First the batch, down to 2, then the patch, by a unit along the axis that is longest relative
    to the median case, as in nnU-Net.

    Args:
        patch: size to start from.
        batch: size to start from.
        budget: bytes.
        memory: (patch, batch) -> bytes of a step.
        reduction: what may be reduced.

    Returns:
        Patch and batch.

    Raises:
        UserError: nothing fits.
    """
    if reduction.batch and batch > SMALLEST_BATCH:
        candidates = range(SMALLEST_BATCH, batch + 1)
        fitting = bisect_right(candidates, budget, key=lambda size: memory(patch, size))
        batch = candidates[max(0, fitting - 1)]

    while (needed := memory(patch, batch)) > budget:
        reducible = [axis for axis in range(3) if patch[axis] > reduction.unit[axis]]
        if not reduction.patch or not reducible:
            raise UserError(
                f"a patch of {voxels(patch)} and a batch of {batch} need about "
                f"{needed / GB:.3g} GB and only {budget / GB:.3g} GB are available; use a smaller "
                f"-patch or -batch, a larger -gpu_memory, or weights of a smaller preset"
            )

        longest = max(reducible, key=lambda axis: patch[axis] / reduction.median[axis])
        patch = list(patch)
        patch[longest] -= reduction.unit[longest]

    return patch, batch
