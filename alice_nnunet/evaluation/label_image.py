"""A label image in NIfTI, or another file that SimpleITK reads, and where its voxels lie in the patient."""

from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
import SimpleITK as sitk

from alice_nnunet.errors import UserError

SPACING_OFF, ORIGIN_OFF, COSINE_OFF = (
    1e-3,
    1e-2,
    1e-3,
)  # mm, mm, and of a direction cosine: what rounding in a header may do


@dataclass(frozen=True)
class Grid:
    """size (voxels), spacing and origin (mm, LPS) in (x, y, z) order; direction: the 9 cosines, row by row."""

    size: tuple[int, int, int]
    spacing: tuple[float, float, float]
    origin: tuple[float, float, float]
    direction: tuple[float, ...]

    @property
    def axial_axis(self) -> int:
        """Which axis of the (z, y, x) array runs from feet to head, or most nearly so where the image is oblique."""
        affine = np.eye(4)
        affine[:3, :3] = np.reshape(self.direction, (3, 3)) * self.spacing
        return 2 - nibabel.io_orientation(affine)[:, 0].tolist().index(2)


@dataclass(frozen=True)
class LabelImage:
    """labels: (Z, Y, X), whole numbers, in the order of the file. path: where they were read from."""

    path: Path
    labels: np.ndarray
    grid: Grid

    @property
    def spacing(self) -> tuple[float, float, float]:
        """mm, (z, y, x)."""
        return self.grid.spacing[::-1]


def is_nifti(path: Path) -> bool:
    return str(path).lower().endswith((".nii", ".nii.gz"))


def read_grid(path: Path) -> Grid:
    """The grid of a file, without its voxels. Raises UserError where it cannot be read or is no 3D image of one channel."""
    try:
        return nifti_grid(path) if is_nifti(path) else itk_grid(path)
    except Exception as error:
        raise UserError(f"{path} cannot be read: {reason(error)}") from None


def nifti_grid(path: Path) -> Grid:
    """By nibabel, which reads sheared axes too, as nnU-Net does; distances take them for perpendicular."""
    image = nibabel.load(path)
    check_3d(image.shape, len(image.get_data_dtype().names or " "))
    affine = np.diag((-1, -1, 1, 1)) @ image.affine  # RAS to LPS
    spacing, zooms = nibabel.affines.voxel_sizes(affine), image.header.get_zooms()
    if not (spacing.all() and np.allclose(spacing, zooms, rtol=0.01)):
        raise ValueError(
            f"the header names two voxel sizes (x, y, z), {listed(zooms)} mm in pixdim and {listed(spacing)} mm in the affine"
        )
    return Grid(
        image.shape,
        tuple(spacing.tolist()),
        tuple(affine[:3, 3].tolist()),
        tuple((affine[:3, :3] / spacing).ravel().tolist()),
    )


def itk_grid(path: Path) -> Grid:
    """By SimpleITK."""
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    check_3d(reader.GetSize(), reader.GetNumberOfComponents())
    return Grid(reader.GetSize(), reader.GetSpacing(), reader.GetOrigin(), reader.GetDirection())


def check_3d(size: tuple[int, ...], channels: int) -> None:
    """Raise ValueError where this is no label image."""
    if len(size) != 3 or channels != 1:
        raise ValueError(
            f"no 3D label image, its size is {by(size)}, with {channels} number(s) in a voxel"
        )


def read_labels(path: Path) -> LabelImage:
    """A label image. Raises UserError where it cannot be read, is not 3D, or a voxel holds no whole number from 0 to 65535."""
    grid = read_grid(path)
    try:
        voxels = read_voxels(path)
    except Exception as error:
        raise UserError(f"{path} cannot be read: {reason(error)}") from None
    labels = voxels if voxels.dtype == np.uint8 else whole_numbers(path, voxels)
    return LabelImage(Path(path), labels, grid)


def read_voxels(path: Path) -> np.ndarray:
    """The array (Z, Y, X) of a 3D file. Raises whatever nibabel or SimpleITK raises."""
    if is_nifti(path):  # SimpleITK fills what a truncated file lacks, and NaN, with zeros
        return np.asarray(nibabel.load(path).dataobj).T
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def whole_numbers(path: Path, voxels: np.ndarray) -> np.ndarray:
    """The same numbers as uint16. Raises UserError with one that is no label."""
    fits = (voxels >= 0) & (voxels <= np.iinfo(np.uint16).max)  # NaN does not
    wrong = ~fits
    wrong[fits] = voxels[fits] != np.floor(voxels[fits])
    if wrong.any():
        raise UserError(
            f"{path} is no label image: {np.count_nonzero(wrong)} of {voxels.size} voxels hold no whole number from 0 to "
            f"65535, such as {voxels[wrong][0]:g}; are these probabilities, or was it interpolated?"
        )
    return voxels.astype(np.uint16)


def check_same_grid(predicted: Path, reference: Path) -> None:
    """Both files' voxels lie at the same places. Raises UserError saying what differs and by how much."""
    p, r = read_grid(predicted), read_grid(reference)
    if p.size != r.size:
        raise UserError(
            f"{predicted} has {by(p.size)} voxels (x, y, z) and {reference} has {by(r.size)}: "
            "predictions must be on the grid of the reference, as nnUNetv2_predict writes them"
        )
    differences = []
    for name, unit, ours, theirs, off in (
        ("spacing", " mm", p.spacing, r.spacing, SPACING_OFF),
        ("origin", " mm", p.origin, r.origin, ORIGIN_OFF),
        ("direction", "", p.direction, r.direction, COSINE_OFF),
    ):
        largest = float(np.abs(np.subtract(ours, theirs)).max())
        if not largest <= off:
            differences.append(
                f"{name} {listed(ours)} and {listed(theirs)}, {largest:.4g}{unit} apart"
            )
    if differences:
        raise UserError(
            f"{predicted} and {reference} lie at different places in the patient (x, y, z): {'; '.join(differences)}"
        )


def by(size: tuple[int, ...]) -> str:
    return " x ".join(map(str, size))


def listed(values: tuple[float, ...]) -> str:
    return "(" + ", ".join(f"{value:.6g}" for value in values) + ")"


def reason(error: Exception) -> str:
    """What an exception says, on one line, without the place in its source that SimpleITK names first."""
    lines = [
        line.strip()
        for line in str(error).splitlines()
        if line.strip() and not line.startswith("Exception thrown in")
    ]
    return " ".join(lines)[:300] or type(error).__name__
