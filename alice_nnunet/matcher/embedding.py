"""The embedding of one volume: a vector for each node of a grid in its body, small enough to keep 2,000 of them.

Axes are (z, y, x). Millimetres are counted from the outer corner of the preprocessed volume's first voxel.
"""

import itertools
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from alice_nnunet.data.body import tight_box
from alice_nnunet.data.volumes import Volume
from alice_nnunet.geometry import Triple, ceil_to
from alice_nnunet.matcher.network import AnatomyNet
from alice_nnunet.matcher.presets import FINE_STRIDE

BLOCK = 3  # nodes along each edge of a block
SEARCHED = 8  # blocks that are searched node by node
NEAR = np.array(list(itertools.product((-1, 0, 1), repeat=3)))
NEIGHBOURS = np.concatenate([NEAR, 2 * NEAR[NEAR.any(1)]])  # blocks away
UNSEEN = 0.3  # what a place counts for that the volume does not show, as unlike
Millimetres = tuple[float, float, float]


@dataclass(frozen=True)
class Embedding:
    """middles: (A, C) int8, the vector in the middle of each block, z slowest; blocks: (A, 27, C) int8, all its vectors.

    grid: blocks along each axis, A in all. origin: mm of the first node, step: mm between nodes. scale: of the int8
    values; scaled, a vector has length 1, its fine and its coarse half the same. Vectors outside the body are 0.
    """

    middles: np.ndarray
    blocks: np.ndarray
    grid: Triple
    origin: Millimetres
    step: Millimetres
    scale: float

    def nearest(self, point: np.ndarray) -> np.ndarray:
        """The node nearest to a point (mm), (3,) int."""
        node = np.rint((point - self.origin) / np.array(self.step)).astype(int)
        return np.clip(node, 0, np.array(self.grid) * BLOCK - 1)

    def position(self, node: np.ndarray) -> np.ndarray:
        """Where a node lies, (3,) mm."""
        return np.array(self.origin) + node * np.array(self.step)

    def vectors(self, points: np.ndarray) -> np.ndarray:
        """The vectors of the nodes nearest to points, (P, 3) mm: (P, C) float32, 0 outside the grid and the body."""
        nodes = np.rint((points - self.origin) / np.array(self.step)).astype(int)
        inside = ((nodes >= 0) & (nodes < np.array(self.grid) * BLOCK)).all(1)
        block, within = np.divmod(nodes[inside], BLOCK)
        found = np.zeros((len(points), self.blocks.shape[2]), np.float32)
        found[inside] = self.blocks[
            np.ravel_multi_index(block.T, self.grid), np.ravel_multi_index(within.T, 3 * (BLOCK,))
        ]
        return found * self.scale

    def find(self, around: np.ndarray) -> tuple[np.ndarray, float]:
        """The node of the body around which vectors are most like around, and the mean of their similarities, at most 1.

        around: (53, C), the vectors wanted at NEIGHBOURS blocks from the node; those that are 0 are not asked for. Places
        above or below what the volume shows count little, those beside the body as unlike. The middles of all blocks are
        compared, then every node of the most similar SEARCHED blocks.
        """
        asked = around.any(1)
        if not asked.any():
            return np.zeros(3, int), 0.0
        offsets, wanted = NEIGHBOURS[asked], around[asked]  # (O, 3), (O, C)
        counted = self.counted(np.arange(self.grid[0] * BLOCK), offsets).reshape(
            -1, BLOCK
        )  # (Z, BLOCK), for each row of nodes
        total = self.alike_middles(offsets, wanted) / counted[:, BLOCK // 2, None, None]
        best = np.argpartition(-total.ravel(), min(SEARCHED, total.size) - 1)[:SEARCHED]
        places = (
            np.array(np.unravel_index(best, self.grid))[:, None] + offsets.T[:, :, None]
        )  # (3, O, K)
        inside = ((places >= 0) & (places < np.array(self.grid)[:, None, None])).all(0)
        rows = self.blocks[np.ravel_multi_index(places, self.grid, mode="clip")]  # (O, K, 27, C)
        alike = (
            rows.reshape(len(offsets), -1, rows.shape[3]).astype(np.float32) @ wanted[:, :, None]
        ).reshape(rows.shape[:3])
        rows_of_nodes = counted[best // np.prod(self.grid[1:])].repeat(BLOCK**2, 1)  # (K, 27)
        alike = (alike * inside[:, :, None]).sum(0) * self.scale / rows_of_nodes  # (K, 27)
        alike[~self.blocks[best].any(2)] = -1
        block, within = np.unravel_index(alike.argmax(), alike.shape)
        node = np.array(np.unravel_index(best[block], self.grid)) * BLOCK + np.unravel_index(
            within, 3 * (BLOCK,)
        )
        return node, min(1.0, float(alike[block, within]))

    @cached_property
    def height(self) -> int:
        """Nodes along z without those that only fill the last blocks up."""
        last = self.blocks[-self.grid[1] * self.grid[2] :].reshape(
            self.grid[1] * self.grid[2], BLOCK, -1
        )
        return (self.grid[0] - 1) * BLOCK + int(last.any((0, 2)).nonzero()[0].max(initial=0)) + 1

    def counted(self, z: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        """By what the sum of the similarities at offsets (blocks) is divided, for nodes at z: as z."""
        at = z[:, None] + BLOCK * offsets[:, 0]
        seen = ((at >= 0) & (at < self.height)).sum(1)
        return (seen + UNSEEN * len(offsets)) / (1 + UNSEEN)

    def alike_middles(self, offsets: np.ndarray, wanted: np.ndarray) -> np.ndarray:
        """Sum of the similarities around the middle of each block, (Z, Y, X) blocks, in units of scale."""
        each = (self.middles.astype(np.float32) @ wanted.T).reshape(*self.grid, len(offsets))
        total = np.zeros(self.grid, np.float32)
        for number, offset in enumerate(offsets):
            if (np.abs(offset) >= self.grid).any():
                continue
            here = tuple(slice(max(0, -o), n - max(0, o)) for o, n in zip(offset, self.grid))
            there = tuple(slice(max(0, o), n - max(0, -o)) for o, n in zip(offset, self.grid))
            total[here] += each[(*there, number)]
        return total


def to_grid(
    image: Tensor, spacing: Millimetres, target: float, size: Triple | None = None
) -> tuple[Tensor, Millimetres]:
    """An image on voxels of about target mm, averaged first where it is much finer. Returns it and its exact spacing.

    image: (1, Z, Y, X). size: voxels of the result, as many as fit best where it is None.
    """
    old = image.shape[1:]
    size = size or tuple(max(1, round(n * s / target)) for n, s in zip(old, spacing))
    factor = [max(1, int(target / s)) for s in spacing]
    averaged = F.avg_pool3d(image[None], factor, ceil_mode=True, count_include_pad=False)
    share = torch.tensor(
        [n / (a * f) for n, a, f in zip(old, averaged.shape[2:], factor)]
    )  # the last averaged voxel may stick out
    theta = torch.cat([share.flip(0).diag(), share.flip(0)[:, None] - 1], 1)[None].to(
        image
    )  # (x, y, z), as torch wants it
    resized = F.grid_sample(
        averaged,
        F.affine_grid(theta, [1, 1, *size], align_corners=False),
        padding_mode="border",
        align_corners=False,
    )
    return resized[0], tuple(n * s / m for n, s, m in zip(old, spacing, size))


@torch.inference_mode()
def embed(network: AnatomyNet, image: Tensor) -> Tensor:
    """Fine and coarse vectors side by side on the fine grid, together of length 1. (1, Z, Y, X) -> (2 C, Z', Y', X').

    The coarse ones are interpolated; the similarity of two vectors is then the mean of the two similarities, as in SAM.
    """
    size = ceil_to(image.shape[1:], network.stride)
    padded = F.pad(
        image[None], [n for old, new in zip(image.shape[:0:-1], size[::-1]) for n in (0, new - old)]
    )
    fine, coarse = network.eval()(padded)
    vectors = torch.cat([fine, resized(coarse, fine.shape[2:])], 1)[0] / 2**0.5
    z, y, x = (-(-n // s) for n, s in zip(image.shape[1:], FINE_STRIDE))
    return vectors[:, :z, :y, :x]


def resized(vectors: Tensor, size: Triple) -> Tensor:
    """Vectors of length 1, (B, C, ...), on another grid over the same space."""
    return F.normalize(F.interpolate(vectors, size, mode="trilinear", align_corners=False), dim=1)


def embed_volume(
    network: AnatomyNet, volume: Volume, voxel: float, step: float, device: torch.device
) -> Embedding:
    """The embedding of a volume. Arguments as in body_vectors."""
    return pack(*body_vectors(network, volume, voxel, step, device))


def body_vectors(
    network: AnatomyNet, volume: Volume, voxel: float, step: float, device: torch.device
) -> tuple[np.ndarray, Millimetres, Millimetres]:
    """Vectors of the box around a volume's body (first channel), 0 outside the body.

    voxel: of the network's input, mm. step: between nodes, mm; the network's own where it is not larger.
    Returns (C, Z, Y, X) float32, the first node and the step in mm.
    """
    image, spacing = to_grid(
        torch.from_numpy(np.ascontiguousarray(volume.image[:1])).to(device), volume.spacing, voxel
    )
    vectors = embed(network, image)  # (C, Z, Y, X)
    extent = np.array(vectors.shape[1:]) * FINE_STRIDE * spacing  # mm
    size = tuple(min(n, max(1, round(e / step))) for n, e in zip(vectors.shape[1:], extent))
    if size != tuple(vectors.shape[1:]):
        vectors = torch.cat([resized(half[None], size)[0] for half in vectors.chunk(2)]) / 2**0.5
    steps = extent / size
    positions = [(np.arange(n) + 0.5) * s for n, s in zip(size, steps)]  # mm
    inside = body_at(volume, positions)
    box = [slice(a, b) for a, b in zip(*tight_box(inside))]
    vectors = np.where(inside, vectors.float().cpu().numpy(), 0)[(slice(None), *box)]
    return (
        vectors,
        tuple(float(p[b.start]) for p, b in zip(positions, box)),
        tuple(map(float, steps)),
    )


def body_at(volume: Volume, positions: list[np.ndarray]) -> np.ndarray:
    """Whether nodes lie in the body. positions: mm along each axis. Returns bool (Z, Y, X)."""
    cells = [
        np.minimum((p / s / c).astype(int), n - 1)
        for p, s, c, n in zip(positions, volume.spacing, volume.body.cell, volume.body.cells.shape)
    ]
    return volume.body.cells[np.ix_(*cells)]


def pack(
    vectors: np.ndarray, origin: Millimetres, step: Millimetres, dtype: type = np.int8
) -> Embedding:
    """Vectors (C, Z, Y, X) as an Embedding; filled up to whole blocks with zeros. dtype: int8, or a float to compare with."""
    size = ceil_to(vectors.shape[1:], 3 * (BLOCK,))
    filled = np.pad(
        vectors, [(0, 0), *((0, new - old) for old, new in zip(vectors.shape[1:], size))]
    )
    grid, scale = (
        tuple(n // BLOCK for n in size),
        float(np.abs(vectors).max()) / 127 if dtype is np.int8 else 1.0,
    )
    (z, y, x), b = grid, BLOCK
    blocks = (
        filled.reshape(-1, z, b, y, b, x, b)
        .transpose(1, 3, 5, 2, 4, 6, 0)
        .reshape(z * y * x, b**3, -1)
    )
    blocks = (np.rint(blocks / scale) if dtype is np.int8 else blocks).astype(dtype)
    return Embedding(np.ascontiguousarray(blocks[:, b**3 // 2]), blocks, grid, origin, step, scale)
