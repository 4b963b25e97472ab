"""Crops of the body, and points in them, from which the embedding is learned."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset, default_collate

from alice_nnunet.data.body import Body
from alice_nnunet.data.volumes import open_volume
from alice_nnunet.geometry import Triple
from alice_nnunet.matcher.embedding import Millimetres, to_grid


class BodyCrops(Dataset):
    """Item i is a crop around a random point of a random body; it depends on (seed, i) alone. Items 2 i and 2 i + 1 show
    the same body: what is far apart in it is in the same batch.

    folder: preprocessed volumes. size: of a crop in voxels of voxel mm. points: drawn in each crop.
    """

    def __init__(
        self,
        folder: Path,
        cases: Sequence[str],
        size: Triple,
        voxel: float,
        points: int,
        seed: Sequence[int],
        length: int,
    ):
        self.folder, self.cases, self.size, self.voxel = Path(folder), list(cases), size, voxel
        self.points, self.seed, self.length = points, tuple(seed), length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict:
        """crop: (1, *size), the first channel. points: (K, 3) mm from the crop's middle, evenly over the body. middle: (3,) mm of
        the volume. case: its name; number: its place among cases."""
        rng, number = np.random.default_rng((*self.seed, index)), self.case_number(index)
        volume = open_volume(self.folder, self.cases[number])
        extent = tuple(
            round(n * self.voxel / s) for n, s in zip(self.size, volume.spacing)
        )  # voxels of the volume
        centre = centre_inside(volume.body.random_point(rng), extent, volume.body.size)
        crop = volume.read_crop(centre, extent)[:1]
        start = np.array([c - n // 2 for c, n in zip(centre, extent)])
        points = points_between(
            volume.body, start, start + extent, volume.spacing, self.points, rng
        )
        middle = (start + np.array(extent) / 2) * volume.spacing
        return {
            "crop": to_grid(torch.from_numpy(crop), volume.spacing, self.voxel, self.size)[0],
            "points": torch.from_numpy((points - middle).astype(np.float32)),
            "middle": torch.from_numpy(middle.astype(np.float32)),
            "case": volume.name,
            "number": number,
        }

    def batch(self, indices: Sequence[int]) -> dict:
        """These items put together, as DataLoader would."""
        return default_collate([self[index] for index in indices])

    def case_number(self, index: int) -> int:
        """The case of an item, by its place among cases."""
        return int(np.random.default_rng((*self.seed, index // 2, 1)).integers(len(self.cases)))


def centre_inside(centre: Triple, extent: Triple, size: Triple) -> Triple:
    """The centre nearest to the given one of a crop of extent voxels that does not leave a volume of size voxels; along an
    axis along which the volume is smaller, its middle."""
    return tuple(
        n // 2 if e >= n else min(max(c, e // 2), n - e + e // 2)
        for c, e, n in zip(centre, extent, size)
    )


def points_between(
    body: Body,
    start: np.ndarray,
    stop: np.ndarray,
    spacing: Millimetres,
    number: int,
    rng: np.random.Generator,
) -> np.ndarray:
    """Random points in the cells of a body whose middle lies between two voxels. Returns (number, 3) mm in the volume.

    There must be such a cell.
    """
    cell = np.array(body.cell)
    cells = np.argwhere(body.cells)
    middles = (cells + 0.5) * cell
    cells = cells[((middles >= start) & (middles < stop)).all(1)]
    low = cells[rng.integers(len(cells), size=number)] * cell
    high = np.minimum(low + cell, body.size)  # the last cell may stick out of the volume
    return (low + rng.random((number, 3)) * (high - low)) * spacing
