"""Sizes, grids and crops. Sizes, points and spacings are 3-tuples in nnU-Net's (z, y, x) order."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

Value = TypeVar("Value")

Triple = tuple[int, int, int]  # voxels
Spacing = tuple[float, float, float]  # mm from one voxel to the next


def triple(values: Iterable[Value]) -> tuple[Value, Value, Value]:
    """Values along (z, y, x) as a tuple, whose length is then part of its type.

    Raises:
        ValueError: there are not three of them.
    """
    z, y, x = values
    return z, y, x


def grid_of(size: Sequence[int], unit: Triple) -> Triple:
    """Number of units along each axis of a crop.

    Args:
        size: of the crop in voxels.
        unit: voxels of a unit.

    Raises:
        ValueError: a size is not a multiple of the unit.
    """
    if any(s <= 0 or s % u for s, u in zip(size, unit)):
        raise ValueError(
            f"a crop size must be a multiple of {unit} voxels (z, y, x), got {tuple(size)}"
        )
    return triple(s // u for s, u in zip(size, unit))


def ceil_to(size: Sequence[int], unit: Triple) -> Triple:
    """The smallest multiple of unit that is at least size, along each axis (voxels)."""
    return triple(-(-s // u) * u for s, u in zip(size, unit))


@dataclass(frozen=True)
class Overlap:
    """The voxels that a crop and an image have in common, as slices of each, (z, y, x)."""

    image: tuple[slice, slice, slice]
    crop: tuple[slice, slice, slice]
    size: Triple

    @property
    def is_empty(self) -> bool:
        """Whether the crop lies outside the image."""
        return 0 in self.size


def overlap(centre: Triple, size: Triple, image_size: Sequence[int]) -> Overlap:
    """Where a crop of size voxels around centre, its voxel number size // 2, meets an image.

    centre may lie outside the image.
    """
    in_image = []
    in_crop = []
    for c, s, n in zip(centre, size, image_size):
        first = c - s // 2
        start = min(max(0, first), n)
        stop = max(start, min(n, first + s))
        in_image.append(slice(start, stop))
        in_crop.append(slice(start - first, stop - first))

    shared = triple(part.stop - part.start for part in in_image)
    return Overlap(triple(in_image), triple(in_crop), shared)


def shift_inside(
    centres: tuple[Triple, Triple], image_sizes: Sequence[Sequence[int]], size: Triple
) -> Triple:
    """The smallest common shift that brings crops of two images inside them, where one does.

    Where none does, as little as possible of the two crops lies outside, along each axis. A crop
    that is longer than its image holds all of it.

    Args:
        centres: of the crops, voxels of the two images.
        image_sizes: of the two images in voxels.
        size: of both crops in voxels.

    Returns:
        voxels to add to both centres.
    """
    shift = []
    for axis, edge in enumerate(size):
        ends = []  # of the ranges of shifts that suit each image
        for centre, image_size in zip(centres, image_sizes):
            start = centre[axis] - edge // 2
            ends += [-start, image_size[axis] - edge - start]

        # The inner two of the four ends are what both ranges share or, where they share nothing,
        # the gap between them: a step in it brings one crop as far in as the other out.
        _, low, high, _ = sorted(ends)
        shift.append(min(max(0, low), high))
    return triple(shift)


def crop_around(image: np.ndarray, centre: Triple, size: Triple) -> np.ndarray:
    """A crop of exactly size voxels whose voxel number size // 2 is centre; 0 outside the image.

    Args:
        image: (C, Z, Y, X).
        centre: voxel of the image; may lie outside.
        size: of the crop in voxels.

    Returns:
        (C, *size) float32.
    """
    shared = overlap(centre, size, image.shape[1:])
    crop = np.zeros((image.shape[0], *size), np.float32)
    if not shared.is_empty:
        in_crop = (slice(None), *shared.crop)
        in_image = (slice(None), *shared.image)
        crop[in_crop] = image[in_image]
    return crop
