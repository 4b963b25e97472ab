"""Where the body is in a volume: a coarse grid of cells, and the tight box around them.

Axes are (z, y, x).
"""

from dataclasses import asdict, dataclass

import numpy as np
from scipy import ndimage

from alice_nnunet.geometry import Spacing, Triple, triple

CELL_MM = 8.0  # wanted edge of a cell
NEIGHBOURS_IN_PLANE = np.array([[[0, 1, 0], [1, 1, 1], [0, 1, 0]]], bool)

VoxelBox = tuple[Triple, Triple]  # first voxel and the one behind the last, along each axis


@dataclass(frozen=True)
class Body:
    """The body in a volume.

    Attributes:
        cells: bool (Z, Y, X), True where the body is.
        cell: edges of a cell in voxels; the last cell along an axis may stick out of the volume.
        box: tight box around the body's voxels. Parts that fill less than half of a cell at the
            rim may be outside.
        size: of the volume in voxels.
    """

    cells: np.ndarray
    cell: Triple
    box: VoxelBox
    size: Triple

    def contains(self, point: Triple) -> bool:
        """Whether the voxel lies in a cell of the body; False outside the volume."""
        if any(p < 0 or p >= n for p, n in zip(point, self.size)):
            return False
        return bool(self.cells[tuple(p // c for p, c in zip(point, self.cell))])

    def random_point(self, rng: np.random.Generator) -> Triple:
        """A voxel of the body: a cell with even odds, then a voxel of it with even odds."""
        drawn = rng.choice(np.flatnonzero(self.cells))
        place = np.unravel_index(drawn, self.cells.shape)

        point = []
        for i, edge, n in zip(place, self.cell, self.size):
            start = i * edge
            point.append(int(rng.integers(start, min(start + edge, n))))
        return triple(point)

    def flipped(self, axes: tuple[int, ...]) -> "Body":
        """The body in the volume with some of the axes (z, y, x) reversed.

        Cells begin at the other end then, so the border may move by half a cell.
        """
        voxels = np.flip(cells_to_voxels(self.cells, self.cell, self.size), axes)
        start, stop = (list(corner) for corner in self.box)
        for axis in axes:
            n = self.size[axis]
            first = n - stop[axis]
            stop[axis] = n - start[axis]
            start[axis] = first
        cells = share_of_cells(voxels, self.cell) > 0.5
        return Body(cells, self.cell, (triple(start), triple(stop)), self.size)

    def to_dict(self) -> dict:
        """Plain values and one array, for the case's .pkl."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: dict) -> "Body":
        """The body that to_dict described."""
        return cls(**content)


def find_body(inside: np.ndarray, spacing: Spacing) -> Body:
    """The largest solid object in a volume and the air it encloses in axial slices (the lungs).

    Args:
        inside: bool (Z, Y, X), True where a voxel is not air.
        spacing: mm, (z, y, x).

    Raises:
        ValueError: nothing is solid.
    """
    cell = triple(max(1, round(CELL_MM / s)) for s in spacing)
    solid = share_of_cells(inside, cell) > 0.5
    if not solid.any():
        raise ValueError(f"no body found: nothing solid fills half a cell of {CELL_MM:g} mm")

    cells = largest_part(solid)
    size = triple(inside.shape)
    voxels = inside & cells_to_voxels(cells, cell, size)
    return Body(cells, cell, tight_box(voxels), size)


def share_of_cells(inside: np.ndarray, cell: Triple) -> np.ndarray:
    """Share of True voxels in each cell, 0 to 1; parts outside the volume do not count."""
    share = inside
    for axis in (2, 1, 0):
        starts = np.arange(0, inside.shape[axis], cell[axis])
        lengths = np.diff(starts, append=inside.shape[axis])
        along_axis = [-1 if a == axis else 1 for a in range(3)]
        sums = np.add.reduceat(share, starts, axis=axis, dtype=np.float32)
        share = sums / lengths.reshape(along_axis)
    return share


def largest_part(solid: np.ndarray) -> np.ndarray:
    """The largest connected part of a grid of cells, with its holes filled.

    Whatever is connected to it by a single cell (the table) is left out.
    """
    filled = fill_slices(solid)
    opened = grow(shrink(filled))
    parts, count = ndimage.label(opened if opened.any() else filled)
    sizes = np.bincount(parts.ravel(), minlength=count + 1)
    return fill_slices(parts == 1 + sizes[1:].argmax())


def grow(cells: np.ndarray) -> np.ndarray:
    """Add one cell all around in each axial slice."""
    return ndimage.binary_dilation(cells, NEIGHBOURS_IN_PLANE)


def shrink(cells: np.ndarray) -> np.ndarray:
    """Remove one cell all around in each axial slice.

    Not at the border of the volume: the body continues outside.
    """
    return ndimage.binary_erosion(cells, NEIGHBOURS_IN_PLANE, border_value=1)


def fill_slices(cells: np.ndarray) -> np.ndarray:
    """Fill the air inside the body in each axial slice."""
    return np.stack([fill_plane(plane) for plane in cells])


def fill_plane(plane: np.ndarray) -> np.ndarray:
    """Fill the holes of one slice, bool (Y, X).

    A lung that the field of view cuts open is a hole too: only air that reaches two edges of the
    slice, as at every corner, is outside.
    """
    air, count = ndimage.label(~plane)
    edges = np.zeros(count + 1, int)  # that each region of air reaches
    for edge in (air[0], air[-1], air[:, 0], air[:, -1]):
        edges[np.unique(edge)] += 1
    return plane | (edges[air] < 2)


def cells_to_voxels(cells: np.ndarray, cell: Triple, size: Triple) -> np.ndarray:
    """Whether each voxel lies in a True cell, bool (Z, Y, X) of size voxels."""
    for axis in range(3):
        cells = np.repeat(cells, cell[axis], axis).take(range(size[axis]), axis)
    return cells


def tight_box(voxels: np.ndarray) -> VoxelBox:
    """The smallest box around the True voxels."""
    start = []
    stop = []
    for axis in range(3):
        others = tuple(a for a in range(3) if a != axis)
        occupied = np.flatnonzero(voxels.any(others))
        start.append(int(occupied[0]))
        stop.append(int(occupied[-1]) + 1)
    return triple(start), triple(stop)
