"""Crops of the body, and points in them, from which the embedding is learned."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset, default_collate

from alice_nnunet.data.body import Body
from alice_nnunet.data.volumes import open_volume
from alice_nnunet.geometry import Spacing, Triple, triple
from alice_nnunet.matcher.embed import resample


class BodyCrops(Dataset):
    """Item i is a crop around a random point of a random body.

    It depends on (seed, i) alone. Items 2 i and 2 i + 1 show the same body, so that points far
    apart in one body are in the same batch.

    Args:
        folder: preprocessed volumes.
        cases: their names.
        size: of a crop in voxels of the network's input.
        voxel: edge of such a voxel, mm.
        points: drawn in each crop.
        seed: of all random numbers.
        length: number of items.
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
        self.folder = Path(folder)
        self.cases = list(cases)
        self.size = size
        self.voxel = voxel
        self.points = points
        self.seed = tuple(seed)
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict:
        """One crop and its points.

        Returns:
            crop: (1, *size), the first channel.
            points: (K, 3) mm from the middle of the crop, evenly over the body.
            middle: (3,) mm in the volume.
            case: its name.
            number: its place among cases.
        """
        rng = np.random.default_rng((*self.seed, index))
        number = self.case_number(index)
        volume = open_volume(self.folder, self.cases[number])

        # Voxels of the volume that the crop covers.
        extent = triple(round(n * self.voxel / s) for n, s in zip(self.size, volume.spacing))
        centre = centre_inside(volume.body.random_point(rng), extent, volume.body.size)
        crop = torch.from_numpy(volume.read_crop(centre, extent)[:1])
        resampled, _ = resample(crop, volume.spacing, self.voxel, self.size)

        start = np.array([c - n // 2 for c, n in zip(centre, extent)])
        points = points_between(
            volume.body, start, start + extent, volume.spacing, self.points, rng
        )
        middle = (start + np.array(extent) / 2) * volume.spacing
        return {
            "crop": resampled,
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
    """The nearest centre whose crop stays inside the volume.

    Along an axis along which the volume is not larger than the crop, the middle of the volume.

    Args:
        centre: voxel of the volume.
        extent: of the crop in voxels.
        size: of the volume in voxels.
    """
    moved = []
    for c, e, n in zip(centre, extent, size):
        lowest = e // 2
        highest = n - e + e // 2
        moved.append(n // 2 if e >= n else min(max(c, lowest), highest))
    return triple(moved)


def points_between(
    body: Body,
    start: np.ndarray,
    stop: np.ndarray,
    spacing: Spacing,
    number: int,
    rng: np.random.Generator,
) -> np.ndarray:
    """Random points in the cells of a body whose middle lies between two voxels.

    Args:
        body: with at least one such cell.
        start: (3,) voxel.
        stop: (3,) voxel.
        spacing: mm.
        number: of points.
        rng: source of the random numbers.

    Returns:
        (number, 3) mm in the volume.
    """
    cell = np.array(body.cell)
    cells = np.argwhere(body.cells)
    middles = (cells + 0.5) * cell
    cells = cells[((middles >= start) & (middles < stop)).all(1)]

    low = cells[rng.integers(len(cells), size=number)] * cell
    high = np.minimum(low + cell, body.size)  # the last cell may stick out of the volume
    return (low + rng.random((number, 3)) * (high - low)) * spacing
