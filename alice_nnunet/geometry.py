"""Boxes, grids and crops. Every size, point and spacing is a 3-tuple in nnU-Net's (z, y, x) order."""

import numpy as np

Triple = tuple[int, int, int]


def grid_of(size: Triple, unit: Triple) -> Triple:
    """Number of units along each axis of a crop. size, unit: voxels. Raises ValueError where they do not divide."""
    if any(s <= 0 or s % u for s, u in zip(size, unit)):
        raise ValueError(
            f"a crop size must be a multiple of {unit} voxels (z, y, x), got {tuple(size)}"
        )
    return tuple(s // u for s, u in zip(size, unit))


def ceil_to(size: Triple, unit: Triple) -> Triple:
    """The smallest multiple of unit that is not under size, along each axis (voxels)."""
    return tuple(-(-s // u) * u for s, u in zip(size, unit))


def crop_around(
    image, centre: Triple, size: Triple, floor: float = 0.0, out: np.ndarray | None = None
) -> np.ndarray:
    """A crop of exactly size voxels whose middle voxel is centre; what lies outside the image is floor.

    image: (C, Z, Y, X), a numpy array or anything that slices like one; one with read_into, as StoredImage, reads straight into
    the crop where it can. centre: voxel index, may lie outside. out: a contiguous float32 array (C, *size) to fill, a new one where it is None.
    """
    start = [c - s // 2 for c, s in zip(centre, size)]
    inside = [slice(max(0, a), min(n, a + s)) for a, s, n in zip(start, size, image.shape[1:])]
    crop = np.empty((image.shape[0], *size), np.float32) if out is None else out
    if any(i.stop - i.start < s for i, s in zip(inside, size)):
        crop[:] = floor
    if any(i.stop <= i.start for i in inside):
        return crop
    target = crop[(slice(None), *(slice(i.start - a, i.stop - a) for i, a in zip(inside, start)))]
    if hasattr(image, "read_into") and target.flags.c_contiguous:
        image.read_into(target, (slice(None), *inside))
    else:
        target[:] = image[(slice(None), *inside)]
    return crop
