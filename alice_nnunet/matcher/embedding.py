"""The embedding of one volume: a vector for each node of a grid in its body.

A vector tells where in a body its node lies. An embedding is small enough to keep thousands of
them. Nodes are stored in blocks of BLOCK x BLOCK x BLOCK, so that a search can compare the middles
of all blocks first and read only the most promising blocks whole.

Axes are (z, y, x). Millimetres count from the outer corner of the first voxel of the preprocessed
volume. C channels, A blocks.
"""

import itertools
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from alice_nnunet.geometry import Spacing, Triple, ceil_to, triple

BLOCK = 3  # nodes along each edge of a block
BLOCK_SIZE = (BLOCK, BLOCK, BLOCK)
NODES = BLOCK**3  # of a block
SEARCHED = 8  # blocks that are searched node by node
UNSEEN = 0.3  # see Embedding.find

# Surroundings of a node in blocks: the 27 offsets up to 1 away and the outer 26 of them doubled.
NEAR = np.array(list(itertools.product((-1, 0, 1), repeat=3)))
NEIGHBOURS = np.concatenate([NEAR, 2 * NEAR[NEAR.any(1)]])  # (53, 3)

Position = tuple[float, float, float]  # mm


@dataclass(frozen=True)
class Embedding:
    """The vectors of one volume.

    Times scale, a vector has length 1, and its fine and its coarse half have the same length.
    Vectors outside the body are 0.

    Attributes:
        middles: (A, C) int8, the vector in the middle of each block, x fastest.
        blocks: (A, 27, C) int8, all vectors of each block.
        grid: blocks along each axis, A in all.
        origin: mm of the first node.
        step: mm from one node to the next.
        scale: of the int8 values.
    """

    middles: np.ndarray
    blocks: np.ndarray
    grid: Triple
    origin: Position
    step: Spacing
    scale: float

    def nearest(self, point: np.ndarray) -> np.ndarray:
        """The node nearest to a point, (3,) mm: (3,) int."""
        return np.clip(self.round_to_nodes(point), 0, self.size - 1)

    def position(self, node: np.ndarray) -> np.ndarray:
        """Where a node lies, (3,) mm."""
        return np.array(self.origin) + node * np.array(self.step)

    def vectors(self, points: np.ndarray) -> np.ndarray:
        """The vectors of the nodes nearest to points.

        Args:
            points: (P, 3) mm.

        Returns:
            (P, C) float32; 0 outside the grid and the body.
        """
        nodes = self.round_to_nodes(points)
        inside = ((nodes >= 0) & (nodes < self.size)).all(1)
        block, within = np.divmod(nodes[inside], BLOCK)
        block_number = np.ravel_multi_index(block.T, self.grid)
        node_number = np.ravel_multi_index(within.T, BLOCK_SIZE)

        found = np.zeros((len(points), self.blocks.shape[2]), np.float32)
        found[inside] = self.blocks[block_number, node_number]
        return found * self.scale

    def find(self, wanted: np.ndarray) -> tuple[np.ndarray, float]:
        """The node of the body whose surroundings are most similar to the wanted vectors.

        With v(n) the vector of node n, 0 outside the body, and w(o) the vector wanted at offset o,
        in blocks, of NEIGHBOURS; sums are over the offsets whose w(o) is not 0, `asked` in all:

            score(n) = sum_o <v(n + BLOCK o), w(o)> / norm(n)
            norm(n) = (shown(n) + UNSEEN asked) / (1 + UNSEEN)

        shown(n) is how many of these offsets lie between the lowest and the highest slice of the
        volume. Where all do, the score is the mean similarity. A place above or below the volume
        counts little, UNSEEN / (1 + UNSEEN); a place beside the body counts as not similar.

        The search is coarse to fine: scores of the middles of all blocks, then of every node of the
        SEARCHED best blocks.

        Args:
            wanted: (53, C), the vectors wanted at NEIGHBOURS; 0 where nothing is asked for.

        Returns:
            The node, (3,) int, and its score, at most 1; a score of 0 where all of wanted is 0.
        """
        asked = wanted.any(1)
        if not asked.any():
            return np.zeros(3, int), 0.0
        offsets = NEIGHBOURS[asked]
        wanted = wanted[asked]
        norm = self.norm(offsets)

        coarse = self.coarse_scores(offsets, wanted, norm).ravel()
        best = np.argpartition(-coarse, min(SEARCHED, coarse.size) - 1)[:SEARCHED]
        scores = self.refine(best, offsets, wanted, norm)

        number, within = np.unravel_index(scores.argmax(), scores.shape)
        block = np.array(np.unravel_index(best[number], self.grid))
        node = block * BLOCK + np.unravel_index(within, BLOCK_SIZE)
        return node, min(1.0, float(scores[number, within]))

    def coarse_scores(
        self, offsets: np.ndarray, wanted: np.ndarray, norm: np.ndarray
    ) -> np.ndarray:
        """The scores of the middle nodes of all blocks, in units of scale.

        Args:
            offsets: (O, 3) blocks.
            wanted: (O, C).
            norm: of each plane of nodes, (grid z, BLOCK).

        Returns:
            (Z, Y, X) blocks.
        """
        similarity = self.middles.astype(np.float32) @ wanted.T  # (A, O)
        similarity = similarity.reshape(*self.grid, len(offsets))

        total = np.zeros(self.grid, np.float32)
        for number, offset in enumerate(offsets):
            if (np.abs(offset) >= self.grid).any():
                continue  # leads out of the grid from every block
            here = tuple(slice(max(0, -o), n - max(0, o)) for o, n in zip(offset, self.grid))
            there = tuple(slice(max(0, o), n - max(0, -o)) for o, n in zip(offset, self.grid))
            total[here] += similarity[..., number][there]
        return total / norm[:, BLOCK // 2, None, None]

    def refine(
        self, numbers: np.ndarray, offsets: np.ndarray, wanted: np.ndarray, norm: np.ndarray
    ) -> np.ndarray:
        """The scores of every node of some blocks.

        Args:
            numbers: (K,) of the blocks.
            offsets: (O, 3) blocks.
            wanted: (O, C).
            norm: of each plane of nodes, (grid z, BLOCK).

        Returns:
            (K, 27); -1 for nodes outside the body.
        """
        blocks = np.array(np.unravel_index(numbers, self.grid))  # (3, K)
        places = blocks[:, None] + offsets.T[:, :, None]  # (3, O, K)
        inside = ((places >= 0) & (places < np.array(self.grid)[:, None, None])).all(0)

        vectors = self.blocks[np.ravel_multi_index(places, self.grid, mode="clip")]  # (O, K, 27, C)
        flat = vectors.reshape(len(offsets), -1, vectors.shape[3]).astype(np.float32)
        similarity = (flat @ wanted[:, :, None]).reshape(vectors.shape[:3])  # (O, K, 27)

        node_norm = norm[blocks[0]].repeat(BLOCK**2, 1)  # (K, 27)
        scores = (similarity * inside[:, :, None]).sum(0) * self.scale / node_norm
        scores[~self.blocks[numbers].any(2)] = -1
        return scores

    def norm(self, offsets: np.ndarray) -> np.ndarray:
        """What find divides the sum of similarities by, for each plane of nodes.

        Args:
            offsets: (O, 3) blocks.

        Returns:
            (grid z, BLOCK).
        """
        z = np.arange(self.grid[0] * BLOCK)
        places = z[:, None] + BLOCK * offsets[:, 0]
        shown = ((places >= 0) & (places < self.height)).sum(1)
        norm = (shown + UNSEEN * len(offsets)) / (1 + UNSEEN)
        return norm.reshape(-1, BLOCK)

    @cached_property
    def height(self) -> int:
        """Nodes along z, without those that only fill up the last blocks."""
        blocks_of_a_plane = self.grid[1] * self.grid[2]
        last = self.blocks[-blocks_of_a_plane:].reshape(blocks_of_a_plane, BLOCK, -1)
        used = int(np.flatnonzero(last.any((0, 2))).max(initial=0)) + 1
        return (self.grid[0] - 1) * BLOCK + used

    @property
    def size(self) -> np.ndarray:
        """Nodes along each axis, (3,) int."""
        return np.array(self.grid) * BLOCK

    def round_to_nodes(self, points: np.ndarray) -> np.ndarray:
        """The nodes nearest to points (mm), on and beyond the grid: int."""
        return np.rint((points - self.origin) / np.array(self.step)).astype(int)


def pack(vectors: np.ndarray, origin: Position, step: Spacing, dtype: type = np.int8) -> Embedding:
    """Store vectors as an Embedding, filled up to whole blocks with zeros.

    Args:
        vectors: (C, Z, Y, X).
        origin: mm of the first node.
        step: mm from one node to the next.
        dtype: np.int8, or a float to compare with.
    """
    size = ceil_to(vectors.shape[1:], BLOCK_SIZE)
    added = [(0, new - old) for old, new in zip(vectors.shape[1:], size)]
    filled = np.pad(vectors, [(0, 0), *added])

    grid = triple(n // BLOCK for n in size)
    z, y, x = grid
    blocks = filled.reshape(-1, z, BLOCK, y, BLOCK, x, BLOCK).transpose(1, 3, 5, 2, 4, 6, 0)
    blocks = blocks.reshape(z * y * x, NODES, -1)

    scale = 1.0
    if dtype is np.int8:
        scale = float(np.abs(vectors).max()) / 127
        blocks = np.rint(blocks / scale)
    blocks = blocks.astype(dtype)
    middles = np.ascontiguousarray(blocks[:, NODES // 2])
    return Embedding(middles, blocks, grid, origin, step, scale)
