"""One case's images as they are in nnUNet_raw: read, or refused with a plain reason."""

import contextlib
import io
from pathlib import Path

import nibabel
import numpy as np


def check_header(path: Path) -> tuple[tuple, np.ndarray]:
    """Size and affine of one NIfTI file after turning it to RAS, without reading its voxels.

    Returns the size (x, y, z) and the 4x4 affine. Raises ValueError with the reason where it is no 3D volume.
    """
    try:
        image = nibabel.load(path)
        shape, affine, zooms = image.shape, image.affine, image.header.get_zooms()
    except Exception as error:
        raise ValueError(f"cannot be read: {first_line(error)}") from None
    if len(shape) != 3:
        raise ValueError(f"not a 3D volume: its shape is {shape}")
    if 0 in shape:
        raise ValueError(f"has no voxels: its shape is {shape}")
    if 1 in shape:
        raise ValueError(f"only one slice along an axis: its shape is {shape}")
    edges = nibabel.affines.voxel_sizes(affine)
    if not (
        np.isfinite(affine).all()
        and np.isfinite(zooms).all()
        and min(zooms) > 0
        and edges.min() > 0
    ):
        raise ValueError(f"voxel sizes must be positive numbers, got {tuple(map(float, zooms))} mm")
    if not np.allclose(edges, zooms, rtol=0.01):
        raise ValueError(
            f"the header names two voxel sizes, {tuple(map(float, zooms))} mm in pixdim and "
            f"{tuple(edges.round(3).tolist())} mm in the affine"
        )
    turned = nibabel.io_orientation(affine)
    axes = np.argsort(turned[:, 0])
    return tuple(shape[a] for a in axes), affine @ nibabel.orientations.inv_ornt_aff(turned, shape)


def check_headers(files: list[Path]) -> None:
    """The channels of one case lie on one grid. Raises ValueError with the file and the reason."""
    first = None
    for path in files:
        try:
            shape, affine = check_header(path)
        except ValueError as error:
            raise ValueError(f"{path.name} {error}" if len(files) > 1 else str(error)) from None
        first = first or (shape, affine)
        if shape != first[0] or not np.allclose(affine, first[1], rtol=0, atol=0.01):
            raise ValueError(
                f"{path.name} lies on another grid than {files[0].name}: size {shape} and {first[0]}, "
                f"or another position or voxel size"
            )


def read_case(files: list[Path], reader) -> tuple[np.ndarray, dict]:
    """All channels of one case. reader: one of nnU-Net's image readers.

    Returns nnU-Net's array (C, Z, Y, X) float32 and properties. Raises ValueError with a plain reason.
    """
    check_headers(files)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            return reader.read_images([str(path) for path in files])
    except MemoryError:
        raise ValueError("not enough memory to read it") from None
    except Exception as error:
        raise ValueError(f"cannot be read: {first_line(error)}") from None


def check_voxels(image: np.ndarray, windows: list[tuple[float, float] | None]) -> None:
    """Something is in every channel. Raises ValueError with the channel and the reason.

    image: (C, Z, Y, X), HU for CT. windows: bottom and top in HU for each CT channel, None for the others.
    """
    for channel, (voxels, window) in enumerate(zip(image, windows)):
        where = f"channel {channel}: " if len(image) > 1 else ""
        broken = voxels.size - np.count_nonzero(np.isfinite(voxels))
        if broken:
            raise ValueError(f"{where}{broken} of {voxels.size} voxels are not finite")
        low, high = voxels.min(), voxels.max()
        if window and high <= window[0]:
            raise ValueError(
                f"{where}nothing above {window[0]:g} HU, only air (the largest value is {high:g})"
            )
        if window and low >= window[1]:
            raise ValueError(
                f"{where}nothing under {window[1]:g} HU (the smallest value is {low:g}): no CT in HU"
            )
        if low == high:
            raise ValueError(f"{where}empty: every voxel is {low:g}")


def first_line(error: Exception) -> str:
    """An exception in a few words."""
    text = str(error).strip().split("\n")[0][:300]
    return text or type(error).__name__
