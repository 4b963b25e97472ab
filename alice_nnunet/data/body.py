"""Where the body is in a volume: a coarse grid of cells, and the tight box around them. Axes are (z, y, x)."""

from dataclasses import asdict, dataclass

import numpy as np
from scipy import ndimage

from alice_nnunet.geometry import Triple

CELL_MM = 8.0
NEIGHBOURS_IN_PLANE = np.array([[[0, 1, 0], [1, 1, 1], [0, 1, 0]]], bool)


@dataclass(frozen=True)
class Body:
    """The body in a volume of size voxels.

    cells: bool (Z, Y, X), True where the body is. cell: edge of a cell in voxels; the last one along an axis may
    stick out of the volume. box: first voxel of the body and the voxel behind its last one, along each axis; it may
    lack what fills less than half of a cell at the rim.
    """

    cells: np.ndarray
    cell: Triple
    box: tuple[Triple, Triple]
    size: Triple

    def contains(self, point: Triple) -> bool:
        """Whether the voxel lies in a cell of the body; False outside the volume."""
        if any(p < 0 or p >= n for p, n in zip(point, self.size)):
            return False
        return bool(self.cells[tuple(p // c for p, c in zip(point, self.cell))])

    def random_point(self, rng: np.random.Generator) -> Triple:
        """A voxel drawn evenly over the body's cells, then evenly inside that cell."""
        drawn = rng.choice(np.flatnonzero(self.cells))
        start = [i * c for i, c in zip(np.unravel_index(drawn, self.cells.shape), self.cell)]
        return tuple(
            int(rng.integers(a, min(a + c, n))) for a, c, n in zip(start, self.cell, self.size)
        )

    def to_dict(self) -> dict:
        """Plain values and one array, for the case's .pkl."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: dict) -> "Body":
        """The body that to_dict described."""
        return cls(**content)


def find_body(inside: np.ndarray, spacing: tuple[float, float, float]) -> Body:
    """The largest solid thing in a volume, with what it encloses in each axial slice (the lungs).

    inside: bool (Z, Y, X), True where a voxel is no air. spacing: mm. Raises ValueError when nothing is solid.
    """
    cell = tuple(max(1, round(CELL_MM / s)) for s in spacing)
    solid = share_of_cells(inside, cell) > 0.5
    if not solid.any():
        raise ValueError(f"no body in it: nothing solid fills half a cell of {CELL_MM:g} mm")
    cells = largest_part(solid)
    return Body(cells, cell, tight_box(inside & spread(cells, cell, inside.shape)), inside.shape)


def share_of_cells(inside: np.ndarray, cell: Triple) -> np.ndarray:
    """Share of True voxels in each cell, 0 to 1; what sticks out of the volume does not count."""
    share = inside
    for axis in (2, 1, 0):
        starts = np.arange(0, inside.shape[axis], cell[axis])
        lengths = np.diff(starts, append=inside.shape[axis]).reshape(
            [-1 if a == axis else 1 for a in range(3)]
        )
        share = np.add.reduceat(share, starts, axis=axis, dtype=np.float32) / lengths
    return share


def largest_part(solid: np.ndarray) -> np.ndarray:
    """The largest connected part of a grid of cells, holes filled, without what hangs on by one cell (the table)."""
    filled = fill_slices(solid)
    opened = grow(shrink(filled))
    parts, count = ndimage.label(opened if opened.any() else filled)
    sizes = np.bincount(parts.ravel(), minlength=count + 1)
    return fill_slices(parts == 1 + sizes[1:].argmax())


def grow(cells: np.ndarray) -> np.ndarray:
    """One cell wider in each axial slice."""
    return ndimage.binary_dilation(cells, NEIGHBOURS_IN_PLANE)


def shrink(cells: np.ndarray) -> np.ndarray:
    """One cell narrower in each axial slice, but not at the volume's border, where a body goes on outside."""
    return ndimage.binary_erosion(cells, NEIGHBOURS_IN_PLANE, border_value=1)


def fill_slices(cells: np.ndarray) -> np.ndarray:
    """Each axial slice with the air that is inside the body filled."""
    return np.stack([fill_plane(plane) for plane in cells])


def fill_plane(plane: np.ndarray) -> np.ndarray:
    """One slice, bool (Y, X), with its holes filled. A lung that the field of view cuts open is a hole too.

    Outside is the air that reaches two edges of the slice; every corner does.
    """
    air, count = ndimage.label(~plane)
    edges = np.zeros(count + 1, int)
    for edge in (air[0], air[-1], air[:, 0], air[:, -1]):
        edges[np.unique(edge)] += 1
    return plane | (edges[air] < 2)


def spread(cells: np.ndarray, cell: Triple, size: Triple) -> np.ndarray:
    """Cells as voxels, bool (Z, Y, X) of size voxels."""
    for axis in range(3):
        cells = np.repeat(cells, cell[axis], axis).take(range(size[axis]), axis)
    return cells


def tight_box(voxels: np.ndarray) -> tuple[Triple, Triple]:
    """Start and stop (exclusive) of the True voxels along each axis."""
    occupied = [
        np.flatnonzero(voxels.any(tuple(a for a in range(3) if a != axis))) for axis in range(3)
    ]
    return tuple(int(i[0]) for i in occupied), tuple(int(i[-1]) + 1 for i in occupied)
