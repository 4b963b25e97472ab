"""Open images of every format that can be input, as nibabel's images in mm and RAS."""

import locale
from collections.abc import Iterator
from contextlib import contextmanager
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


def open_image(path: Path) -> nibabel.spatialimages.SpatialImage:
    """Open an image. The voxels of NIfTI files are not read yet.

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
        return from_itk(read_itk(path))
    except MemoryError:
        raise UnreadableError("not enough memory to read it") from None
    except UnreadableError:
        raise
    except Exception as error:  # whatever the readers stumble on
        raise UnreadableError(f"cannot be read: {first_line(error)}") from None


def read_itk(path: Path) -> sitk.Image:
    """Read a file, or the one series of DICOM files in a folder, by SimpleITK."""
    if not path.is_dir():
        return sitk.ReadImage(str(path))

    with same_locale():
        return read_series(path)


@contextmanager
def same_locale() -> Iterator[None]:
    """Put the locale of text back: GDCM sets it to C, and Python then reads files as ASCII."""
    before = locale.setlocale(locale.LC_CTYPE)
    try:
        yield
    finally:
        locale.setlocale(locale.LC_CTYPE, before)


def read_series(path: Path) -> sitk.Image:
    """Read the one DICOM series of a folder. Raises UnreadableError if there is another number."""
    series = sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(path))
    if len(series) != 1:
        found = "no DICOM series" if not series else f"{len(series)} DICOM series"
        raise UnreadableError(f"{found} in the folder, one is needed")

    files = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(path), series[0])
    check_slices(files)
    return sitk.ReadImage(files)


def check_slices(files: tuple[str, ...]) -> None:
    """Raise UnreadableError if slices of a DICOM series are missing or not at one distance."""
    places = []
    for file in files:
        reader = sitk.ImageFileReader()
        reader.SetFileName(file)
        reader.ReadImageInformation()
        direction = np.reshape(reader.GetDirection(), (3, 3))
        places.append(float(np.dot(reader.GetOrigin(), direction[:, 2])))

    steps = np.abs(np.diff(places))
    if len(steps) and not np.allclose(steps, np.median(steps), rtol=0.05, atol=0.01):
        raise UnreadableError(
            f"slices are missing or lie at several distances, from {steps.min():.3g} to "
            f"{steps.max():.3g} mm"
        )


def from_itk(image: sitk.Image) -> nibabel.Nifti1Image:
    """The same image for nibabel. Several numbers in a voxel become a fourth axis."""
    dimensions = image.GetDimension()
    voxels = sitk.GetArrayFromImage(image)
    if image.GetNumberOfComponentsPerPixel() > 1:
        voxels = np.moveaxis(voxels, -1, 0)  # as the last axis of nibabel's order
    voxels = voxels.transpose()

    matrix = np.eye(4)
    axes = min(3, dimensions)
    direction = np.reshape(image.GetDirection(), (dimensions, dimensions))[:axes, :axes]
    matrix[:axes, :axes] = direction * image.GetSpacing()[:axes]
    matrix[:axes, 3] = image.GetOrigin()[:axes]

    if voxels.dtype == np.int64:
        voxels = voxels.astype(np.int32)
    return nibabel.Nifti1Image(voxels, LPS_TO_RAS @ matrix)


def first_line(error: Exception) -> str:
    """The first line of an exception's text that says something, or its type."""
    lines = [line.strip() for line in str(error).splitlines()]
    said = [line for line in lines if line and not line.startswith("Exception thrown in")]
    return said[0][:300] if said else type(error).__name__
