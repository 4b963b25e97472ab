"""Read the images of one case in nnUNet_raw, or refuse them with a plain reason."""

import contextlib
import io
from pathlib import Path
from typing import Any

import nibabel
import numpy as np


def check_header(path: Path) -> tuple[tuple[int, int, int], np.ndarray]:
    """Read size and affine of a NIfTI file, reoriented to RAS, without its voxels.

    Returns:
        Size (x, y, z) and affine (4, 4).

    Raises:
        ValueError: the file is not a 3D volume, with the reason.
    """
    try:
        image: Any = nibabel.load(path)
        shape = image.shape
        affine = image.affine
        zooms = image.header.get_zooms()
    except Exception as error:
        raise ValueError(f"cannot be read: {first_line(error)}") from None

    if len(shape) != 3:
        raise ValueError(f"not a 3D volume: its shape is {shape}")
    if 0 in shape:
        raise ValueError(f"has no voxels: its shape is {shape}")
    if 1 in shape:
        raise ValueError(f"only one slice along an axis: its shape is {shape}")

    edges = nibabel.affines.voxel_sizes(affine)
    finite = np.isfinite(affine).all() and np.isfinite(zooms).all()
    if not finite or min(zooms) <= 0 or edges.min() <= 0:
        raise ValueError(f"voxel sizes must be positive numbers, got {tuple(map(float, zooms))} mm")
    if not np.allclose(edges, zooms, rtol=0.01):
        raise ValueError(
            f"the header has two voxel sizes, {tuple(map(float, zooms))} mm in pixdim and "
            f"{tuple(edges.round(3).tolist())} mm in the affine"
        )

    orientation = nibabel.io_orientation(affine)
    x, y, z = (shape[axis] for axis in np.argsort(orientation[:, 0]))
    to_file = nibabel.orientations.inv_ornt_aff(orientation, shape)
    return (x, y, z), affine @ to_file


def check_headers(files: list[Path]) -> None:
    """Raise ValueError unless all channels of a case lie on one grid."""
    first = None

    for path in files:
        try:
            shape, affine = check_header(path)
        except ValueError as error:
            name = f"{path.name} " if len(files) > 1 else ""
            raise ValueError(f"{name}{error}") from None

        first = first or (shape, affine)
        if shape != first[0] or not np.allclose(affine, first[1], rtol=0, atol=0.01):
            raise ValueError(
                f"{path.name} lies on another grid than {files[0].name}: size {shape} and "
                f"{first[0]}, or another position or voxel size"
            )


def read_case(files: list[Path], reader) -> tuple[np.ndarray, dict]:
    """Read all channels of one case.

    Args:
        files: one file per channel.
        reader: one of nnU-Net's image readers.

    Returns:
        nnU-Net's float32 array (C, Z, Y, X) and its properties.

    Raises:
        ValueError: the images cannot be used, with the reason.
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
    """Raise ValueError, with channel and reason, if there is nothing to see in a channel.

    Args:
        image: (C, Z, Y, X), HU for CT.
        windows: bottom and top in HU for each CT channel, None for the others.
    """
    for channel, (voxels, window) in enumerate(zip(image, windows)):
        where = f"channel {channel}: " if len(image) > 1 else ""

        broken = voxels.size - np.count_nonzero(np.isfinite(voxels))
        if broken:
            raise ValueError(f"{where}{broken} of {voxels.size} voxels are not finite")

        low = voxels.min()
        high = voxels.max()
        if window and high <= window[0]:
            raise ValueError(
                f"{where}nothing above {window[0]:g} HU, only air (the largest value is {high:g})"
            )
        if window and low >= window[1]:
            raise ValueError(
                f"{where}nothing below {window[1]:g} HU (the smallest value is {low:g}): "
                f"not CT in HU"
            )
        if low == high:
            raise ValueError(f"{where}empty: every voxel is {low:g}")


def first_line(error: Exception) -> str:
    """The first line of an exception's text, or its type if it has no text."""
    text = str(error).strip().split("\n")[0][:300]
    return text or type(error).__name__
