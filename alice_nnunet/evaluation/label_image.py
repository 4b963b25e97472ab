"""Label images in NIfTI, or in another format that SimpleITK reads, and their grids."""

from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
import SimpleITK as sitk

from alice_nnunet.errors import UserError
from alice_nnunet.geometry import Spacing, Triple, triple
from alice_nnunet.text import voxels as size_text

# Differences between two headers that rounding explains.
SPACING_TOLERANCE = 1e-3  # mm
ORIGIN_TOLERANCE = 1e-2  # mm
COSINE_TOLERANCE = 1e-3  # of a direction cosine
LONGEST_REASON = 300  # characters of another library's message


@dataclass(frozen=True)
class Grid:
    """Where the voxels of a file lie in the patient. All in (x, y, z) order, unlike arrays.

    Attributes:
        size: voxels.
        spacing: mm.
        origin: mm, LPS.
        direction: the 9 direction cosines, row by row.
    """

    size: Triple
    spacing: Spacing
    origin: tuple[float, float, float]
    direction: tuple[float, ...]

    @property
    def axial_axis(self) -> int:
        """The axis of the (z, y, x) array that runs, at least roughly, from feet to head."""
        affine = np.eye(4)
        affine[:3, :3] = np.reshape(self.direction, (3, 3)) * self.spacing
        return 2 - nibabel.io_orientation(affine)[:, 0].tolist().index(2)


@dataclass(frozen=True)
class LabelImage:
    """A label image.

    Attributes:
        path: the file it was read from.
        labels: (Z, Y, X) unsigned integers in the order of the file.
        grid: where the voxels lie.
    """

    path: Path
    labels: np.ndarray
    grid: Grid

    @property
    def spacing(self) -> Spacing:
        """mm, (z, y, x)."""
        return self.grid.spacing[::-1]


def is_nifti(path: Path) -> bool:
    return str(path).lower().endswith((".nii", ".nii.gz"))


def read_grid(path: Path) -> Grid:
    """The grid of a file; its voxels are not read.

    Raises:
        UserError: the file cannot be read or is not a 3D image of one channel.
    """
    try:
        return nifti_grid(path) if is_nifti(path) else itk_grid(path)
    except Exception as error:
        raise UserError(f"{path} cannot be read: {reason(error)}") from None


def nifti_grid(path: Path) -> Grid:
    """The grid by nibabel, which reads sheared axes, as nnU-Net does.

    Distances are computed as if the axes were perpendicular.
    """
    image = nibabel.load(path)
    channels = len(image.get_data_dtype().names or " ")
    check_3d(image.shape, channels)

    affine = np.diag((-1, -1, 1, 1)) @ image.affine  # RAS to LPS
    spacing = nibabel.affines.voxel_sizes(affine)
    zooms = image.header.get_zooms()
    if not (spacing.all() and np.allclose(spacing, zooms, rtol=0.01)):
        raise ValueError(
            f"the header has two voxel sizes (x, y, z), {listed(zooms)} mm in pixdim and "
            f"{listed(spacing)} mm in the affine"
        )

    cosines = affine[:3, :3] / spacing
    return Grid(
        image.shape,
        tuple(spacing.tolist()),
        tuple(affine[:3, 3].tolist()),
        tuple(cosines.ravel().tolist()),
    )


def itk_grid(path: Path) -> Grid:
    """The grid by SimpleITK."""
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    check_3d(reader.GetSize(), reader.GetNumberOfComponents())
    return Grid(reader.GetSize(), reader.GetSpacing(), reader.GetOrigin(), reader.GetDirection())


def check_3d(size: tuple[int, ...], channels: int) -> None:
    """Raise ValueError unless an image is 3D with one channel."""
    if len(size) != 3 or channels != 1:
        raise ValueError(
            f"not a 3D label image, its size is {size_text(size)}, "
            f"with {channels} number(s) in a voxel"
        )


def read_labels(path: Path) -> LabelImage:
    """Read a label image.

    Raises:
        UserError: the file cannot be read, is not 3D, or has a voxel that is not a whole number
            from 0 to 65535.
    """
    grid = read_grid(path)
    try:
        voxels = read_voxels(path)
    except Exception as error:
        raise UserError(f"{path} cannot be read: {reason(error)}") from None

    labels = voxels if voxels.dtype == np.uint8 else whole_numbers(path, voxels)
    return LabelImage(Path(path), labels, grid)


def read_voxels(path: Path) -> np.ndarray:
    """The array (Z, Y, X) of a 3D file. Raises whatever nibabel or SimpleITK raises."""
    if is_nifti(path):
        # SimpleITK would replace what a truncated file lacks, and NaN, by zeros.
        return np.asarray(nibabel.load(path).dataobj).T
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def whole_numbers(path: Path, voxels: np.ndarray) -> np.ndarray:
    """The same numbers as uint16.

    Raises:
        UserError: with a number that is not a label.
    """
    valid = (voxels >= 0) & (voxels <= np.iinfo(np.uint16).max)  # False for NaN
    valid[valid] = voxels[valid] == np.floor(voxels[valid])

    if not valid.all():
        wrong = voxels[~valid]
        raise UserError(
            f"{path} is not a label image: {len(wrong)} of {voxels.size} voxels are no whole "
            f"number from 0 to 65535, such as {wrong[0]:g}. Does the file hold probabilities, or "
            "was it interpolated?"
        )
    return voxels.astype(np.uint16)


def ras_affine(grid: Grid) -> np.ndarray:
    """The affine (4, 4) from voxels to mm in RAS."""
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(grid.direction, (3, 3)) * grid.spacing
    affine[:3, 3] = grid.origin
    return np.diag((-1, -1, 1, 1)) @ affine


def turn_between(grid: Grid, like: Grid) -> np.ndarray | None:
    """nibabel's transform of axes from one grid to the orientation of another; None if equal."""
    orientations = [nibabel.io_orientation(ras_affine(g)) for g in (grid, like)]
    if np.isnan(orientations).any() or np.array_equal(*orientations):
        return None
    return nibabel.orientations.ornt_transform(*orientations)


def turned_grid(grid: Grid, like: Grid) -> Grid:
    """The same grid with axes in the order and direction of another one's."""
    turn = turn_between(grid, like)
    if turn is None:
        return grid

    affine = ras_affine(grid) @ nibabel.orientations.inv_ornt_aff(turn, grid.size)
    affine = np.diag((-1, -1, 1, 1)) @ affine
    spacing = nibabel.affines.voxel_sizes(affine)
    size = triple(grid.size[axis] for axis in np.argsort(turn[:, 0]))
    cosines = affine[:3, :3] / spacing
    return Grid(
        size,
        tuple(spacing.tolist()),
        tuple(affine[:3, 3].tolist()),
        tuple(cosines.ravel().tolist()),
    )


def turned_labels(image: LabelImage, like: LabelImage) -> np.ndarray:
    """The labels (Z, Y, X) of an image with axes in the order and direction of another one's."""
    turn = turn_between(image.grid, like.grid)
    if turn is None:
        return image.labels
    return np.ascontiguousarray(nibabel.orientations.apply_orientation(image.labels.T, turn).T)


def check_same_grid(predicted: Path, reference: Path) -> None:
    """Compare the grids of two files, turned to one orientation.

    Raises:
        UserError: they differ; the message says in what and by how much.
    """
    theirs = read_grid(reference)
    ours = turned_grid(read_grid(predicted), theirs)
    if ours.size != theirs.size:
        raise UserError(
            f"{predicted} has {size_text(ours.size)} voxels (x, y, z) and {reference} has "
            f"{size_text(theirs.size)}: predictions must be on the grid of the reference, as "
            "nnUNetv2_predict writes them"
        )

    differences = [
        grid_difference("spacing", ours.spacing, theirs.spacing, SPACING_TOLERANCE, " mm"),
        grid_difference("origin", ours.origin, theirs.origin, ORIGIN_TOLERANCE, " mm"),
        grid_difference("direction", ours.direction, theirs.direction, COSINE_TOLERANCE, ""),
    ]
    found = [text for text in differences if text]
    if found:
        raise UserError(
            f"{predicted} and {reference} lie at different places in the patient (x, y, z): "
            f"{'; '.join(found)}"
        )


def grid_difference(
    name: str,
    ours: tuple[float, ...],
    theirs: tuple[float, ...],
    tolerance: float,
    unit: str,
) -> str | None:
    """How two properties of grids differ, None where they are the same within the tolerance."""
    largest = float(np.abs(np.subtract(ours, theirs)).max())
    if largest <= tolerance:  # False for NaN
        return None
    return f"{name} {listed(ours)} and {listed(theirs)}, {largest:.4g}{unit} apart"


def listed(values: tuple[float, ...]) -> str:
    return "(" + ", ".join(f"{value:.6g}" for value in values) + ")"


def reason(error: Exception) -> str:
    """The message of an exception on one line, without SimpleITK's place in its source."""
    lines = [line.strip() for line in str(error).splitlines()]
    said = [line for line in lines if line and not line.startswith("Exception thrown in")]
    return " ".join(said)[:LONGEST_REASON] or type(error).__name__
