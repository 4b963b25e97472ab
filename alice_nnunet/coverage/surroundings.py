"""Many places of one body against another at once: what stands around each of them.

The scores are those of Embedding.find before it refines them: of the middles of blocks. A search
that goes on from there finds the same score or a higher one.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from alice_nnunet.matcher.embedding import BLOCK, NEIGHBOURS, UNSEEN, Embedding


@dataclass(frozen=True)
class Surroundings:
    """The surroundings of P places, each in some embedding.

    Attributes:
        positions: (P, 3) mm in that volume.
        vectors: (P, 53, C), the vectors at NEIGHBOURS; 0 outside the body.
    """

    positions: np.ndarray
    vectors: np.ndarray

    def __len__(self) -> int:
        return len(self.positions)

    def every(self, step: int) -> "Surroundings":
        """One in step of them."""
        return Surroundings(self.positions[::step], self.vectors[::step])

    @cached_property
    def asked(self) -> np.ndarray:
        """(P, 53) float32: 1 where a vector is wanted."""
        return np.asarray(self.vectors.any(2), np.float32)


def random_surroundings(
    embedding: Embedding, number: int, rng: np.random.Generator
) -> Surroundings:
    """Those of the middles of blocks of the body, drawn evenly; all where there are fewer."""
    in_body = np.flatnonzero(embedding.middles.any(1))
    drawn = np.sort(rng.permutation(in_body)[:number])
    return surroundings_at(embedding, block_positions(embedding, drawn))


def surroundings_at(embedding: Embedding, positions: np.ndarray) -> Surroundings:
    """Those of the nodes nearest to (P, 3) mm."""
    steps = NEIGHBOURS * BLOCK * np.array(embedding.step)
    points = positions[:, None] + steps  # (P, 53, 3)
    vectors = embedding.vectors(points.reshape(-1, 3))
    channels = vectors.shape[-1]  # there may be no positions, so -1 would not do
    return Surroundings(positions, vectors.reshape(len(positions), len(NEIGHBOURS), channels))


def joined(parts: list[Surroundings]) -> Surroundings:
    """All of them in one."""
    return Surroundings(
        np.concatenate([part.positions for part in parts]),
        np.concatenate([part.vectors for part in parts]),
    )


def block_positions(embedding: Embedding, numbers: np.ndarray) -> np.ndarray:
    """(P, 3) mm: the middles of the blocks with these numbers."""
    places = np.stack(np.unravel_index(numbers, embedding.grid), 1)
    nodes = places * BLOCK + BLOCK // 2
    return np.array(embedding.origin) + nodes * np.array(embedding.step)


def best_scores(
    key: Embedding, wanted: Surroundings, not_within: float | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Where each of the wanted places is in the key, by the middles of blocks alone.

    Args:
        key: Where to search.
        wanted: P places.
        not_within: mm; the key is the volume of these places, and only what is further away than
            this counts.

    Returns:
        scores: (P,), at most 1; -1 where there is nothing to search.
        positions: (P, 3) mm in the key.
    """
    if not len(wanted):
        return np.zeros(0, np.float32), np.zeros((0, 3))

    scores = coarse_scores(key, wanted)  # (A, P)
    scores[~key.middles.any(1)] = -1

    if not_within is not None:
        middles = block_positions(key, np.arange(len(key.middles)))
        distance = np.linalg.norm(middles[:, None] - wanted.positions, axis=2)
        scores[distance <= not_within] = -1

    best = scores.argmax(0)
    found = np.minimum(scores[best, np.arange(len(wanted))], 1)
    return found, block_positions(key, best)


def coarse_scores(key: Embedding, wanted: Surroundings) -> np.ndarray:
    """The score of each place at the middle of each block: Embedding.coarse_scores, for many.

    Returns:
        (A, P) float32.
    """
    count = len(wanted)
    by_offset = wanted.vectors.transpose(2, 1, 0).reshape(wanted.vectors.shape[2], -1)
    similarity = key.middles.astype(np.float32) @ by_offset
    similarity = similarity.reshape(*key.grid, len(NEIGHBOURS), count)

    total = np.zeros((*key.grid, count), np.float32)
    for number, offset in enumerate(NEIGHBOURS):
        if (np.abs(offset) >= key.grid).any():
            continue  # leads out of the grid from every block
        here = tuple(slice(max(0, -o), n - max(0, o)) for o, n in zip(offset, key.grid))
        there = tuple(slice(max(0, o), n - max(0, -o)) for o, n in zip(offset, key.grid))
        total[here] += similarity[(*there, number)]

    # As Embedding.norm, in the middle plane of each block.
    planes = np.arange(key.grid[0]) * BLOCK + BLOCK // 2
    seen = planes[:, None] + BLOCK * NEIGHBOURS[:, 0]
    shown = ((seen >= 0) & (seen < key.height)).astype(np.float32)  # (Z, 53)
    norm = (shown @ wanted.asked.T + UNSEEN * wanted.asked.sum(1)) / (1 + UNSEEN)  # (Z, P)
    norm = np.maximum(norm, 1e-6)
    return (total * key.scale / norm[:, None, None]).reshape(-1, count)
