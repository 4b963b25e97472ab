"""Open images of every format that can be input, as nibabel's images in mm and RAS.

Opening reads headers only. The voxels are read when they are asked for, once.
"""

import locale
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
import SimpleITK as sitk

NIFTI = (".nii.gz", ".nii")
BY_ITK = (".nrrd", ".mha", ".mhd")  # and folders of DICOM files
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


class UnreadableError(ValueError):
    """A file that cannot be read, with the reason."""


def is_nifti(path: Path) -> bool:
    return path.name.lower().endswith(NIFTI)


@dataclass
class ItkVoxels:
    """The voxels of a file, or of the slices of a DICOM series, that SimpleITK reads.

    nibabel takes it in place of an array, and reads it when somebody asks for the voxels.

    Attributes:
        files: names of one file, or of the slices of a series.
        shape: along the axes of nibabel's array; several numbers in a voxel are the fourth axis.
        dtype: of the voxels.
    """

    files: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: np.dtype
    is_proxy = True

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        with same_locale():
            image = sitk.ReadImage(self.files if len(self.files) > 1 else self.files[0])
        voxels = sitk.GetArrayFromImage(image)
        if image.GetNumberOfComponentsPerPixel() > 1:
            voxels = np.moveaxis(voxels, -1, 0)  # as the last axis of nibabel's order
        return voxels.transpose().reshape(self.shape).astype(dtype or self.dtype, copy=False)

    def __getitem__(self, index) -> np.ndarray:
        return np.asarray(self)[index]


def open_image(path: Path) -> nibabel.spatialimages.SpatialImage:
    """Open an image. Its voxels are not read yet.

    Args:
        path: NIfTI, a file that SimpleITK reads, or a folder with one series of DICOM files.

    Raises:
        UnreadableError: with the reason.
    """
    try:
        if is_nifti(path):
            image = nibabel.load(path)
            image.shape, image.affine, image.header.get_zooms()
            return image
        return open_series(path) if path.is_dir() else open_file(path)
    except MemoryError:
        raise UnreadableError("not enough memory to read it") from None
    except UnreadableError:
        raise
    except Exception as error:  # whatever the readers stumble on
        raise UnreadableError(f"cannot be read: {first_line(error)}") from None


def open_file(path: Path) -> nibabel.Nifti1Image:
    """Open a file that SimpleITK reads."""
    header = read_header(str(path))
    dimensions = header.GetDimension()
    axes = min(3, dimensions)

    affine = np.eye(4)
    direction = np.reshape(header.GetDirection(), (dimensions, dimensions))[:axes, :axes]
    affine[:axes, :axes] = direction * header.GetSpacing()[:axes]
    affine[:axes, 3] = header.GetOrigin()[:axes]
    return as_image((str(path),), header, header.GetSize(), affine)


def open_series(path: Path) -> nibabel.Nifti1Image:
    """Open the one DICOM series of a folder. Its slices lie where their headers say.

    Raises:
        UnreadableError: there is another number of series, or the slices are at several distances.
    """
    with same_locale():
        series = sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(path))
        if len(series) != 1:
            found = "no DICOM series" if not series else f"{len(series)} DICOM series"
            raise UnreadableError(f"{found} in the folder, one is needed")
        files = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(path), series[0])
        headers = [read_header(file) for file in files]

    first = headers[0]
    places = np.array([header.GetOrigin() for header in headers])
    direction = np.reshape(first.GetDirection(), (3, 3))
    check_slices(places @ direction[:, 2])

    affine = np.eye(4)
    affine[:3, :3] = direction * first.GetSpacing()
    affine[:3, 3] = places[0]
    if len(files) == 1:
        return as_image(files, first, first.GetSize(), affine)
    affine[:3, 2] = (places[-1] - places[0]) / (len(files) - 1)
    return as_image(files, first, (*first.GetSize()[:2], len(files)), affine)


def read_header(file: str) -> sitk.ImageFileReader:
    """A reader that has read the header of a file alone."""
    reader = sitk.ImageFileReader()
    reader.SetFileName(file)
    reader.ReadImageInformation()
    return reader


def as_image(
    files: tuple[str, ...], header: sitk.ImageFileReader, size: tuple[int, ...], affine: np.ndarray
) -> nibabel.Nifti1Image:
    """An image for nibabel whose voxels SimpleITK reads when they are asked for.

    Args:
        files: that hold the voxels.
        header: of the first file.
        size: voxels along the axes of the files.
        affine: (4, 4), from voxels to mm in LPS.
    """
    components = header.GetNumberOfComponents()
    shape = (*size, components) if components > 1 else tuple(size)
    voxels = ItkVoxels(tuple(files), shape, dtype_of(header))
    # without dtype nibabel would read a voxel to find it out
    return nibabel.Nifti1Image(voxels, LPS_TO_RAS @ affine, dtype=voxels.dtype)


@contextmanager
def same_locale() -> Iterator[None]:
    """Put the locale of text back: GDCM sets it to C, and Python then reads files as ASCII."""
    before = locale.setlocale(locale.LC_CTYPE)
    try:
        yield
    finally:
        locale.setlocale(locale.LC_CTYPE, before)


def dtype_of(header: sitk.ImageFileReader) -> np.dtype:
    """The type of the voxels. 64-bit integers are read as 32 bits, which nibabel writes."""
    kind = sitk.GetPixelIDValueAsString(header.GetPixelID()).removeprefix("vector of ")
    known = {
        "8-bit signed integer": "i1",
        "8-bit unsigned integer": "u1",
        "16-bit signed integer": "i2",
        "16-bit unsigned integer": "u2",
        "32-bit signed integer": "i4",
        "32-bit unsigned integer": "u4",
        "64-bit signed integer": "i4",
        "64-bit unsigned integer": "u4",
        "32-bit float": "f4",
        "64-bit float": "f8",
    }
    if kind not in known:
        raise UnreadableError(f"has voxels of the type {kind}")
    return np.dtype(known[kind])


def check_slices(places: np.ndarray) -> None:
    """Raise UnreadableError if slices of a DICOM series are missing or not at one distance.

    places: of the slices in their order, mm along the normal of the slices.
    """
    steps = np.abs(np.diff(places))
    if len(steps) and not np.allclose(steps, np.median(steps), rtol=0.05, atol=0.01):
        raise UnreadableError(
            f"slices are missing or lie at several distances, from {steps.min():.3g} to "
            f"{steps.max():.3g} mm"
        )


def first_line(error: Exception) -> str:
    """The first line of an exception's text that says something, or its type."""
    lines = [line.strip() for line in str(error).splitlines()]
    said = [line for line in lines if line and not line.startswith("Exception thrown in")]
    return said[0][:300] if said else type(error).__name__
