"""Which scans lie the same way round.

Two scans of a part of the body resemble each other more as they are than with one of them mirrored
or turned upside down. Where it is the other way, the header of one is wrong, or they show opposite
limbs.
"""

from dataclasses import dataclass

import numpy as np
from scipy import sparse
from scipy.sparse.csgraph import connected_components

from alice_nnunet.coverage.surroundings import Surroundings, surroundings_at
from alice_nnunet.matcher.embedding import Embedding

ROUNDS = 20
LEAST = 1.0  # by which a scan must disagree with the others to change its side: ten close matches
DOUBT = 0.2  # share of all gains by which it must, as well
GREAT_DOUBT = 0.6  # the same for head and feet: front and back of limbs differ from one to another


LEFT_RIGHT = (2,)  # axes that are reversed in a mirrored scan
UPSIDE_DOWN = (0, 1)  # and in one that is turned from head to feet


@dataclass(frozen=True)
class Flipped:
    """A scan with some axes reversed.

    Attributes:
        embedding: Of the flipped volume.
        extent: Of the volume along each axis, mm.
        axes: That are reversed.
    """

    embedding: Embedding
    extent: np.ndarray
    axes: tuple[int, ...]

    def surroundings(self, places: Surroundings) -> Surroundings:
        """What stands around these places of the scan, flipped."""
        positions = places.positions.copy()
        for axis in self.axes:
            positions[:, axis] = self.extent[axis] - positions[:, axis]
        return surroundings_at(self.embedding, positions)


@dataclass(frozen=True)
class Sides:
    """Which way round N scans lie; scans of different sides do not match.

    Attributes:
        mirrored: (N,) bool, left and right are exchanged against most others.
        turned: (N,) bool, head and feet are.
    """

    mirrored: np.ndarray
    turned: np.ndarray

    def differ(self, others: np.ndarray) -> np.ndarray:
        """Whether scans lie another way round than others of them, (N, K) numbers."""
        differs = self.mirrored[others] != self.mirrored[:, None]
        return differs | (self.turned[others] != self.turned[:, None])


def find_sides(gains: np.ndarray, others: np.ndarray, doubt: float = DOUBT) -> np.ndarray:
    """The side of each scan: two scans of one side resemble each other more as they are.

    All begin on one side. A scan that disagrees with the others changes it, until none does: each
    change lets the sides agree better with the gains.

    Args:
        gains: (N, K), how much better each of some other scans shows a scan as it is than flipped.
        others: (N, K), the numbers of these scans; -1 where there are fewer.
        doubt: Share of a scan's gains by which it must disagree to change its side.

    Returns:
        (N,) bool, whether a scan is on the other side than most that it is linked with.
    """
    count = len(others)
    query, column = np.nonzero(others >= 0)
    key = others[query, column]
    one_way = sparse.coo_matrix((gains[query, column], (query, key)), (count, count)).tocsr()
    links = (one_way + one_way.T).tocsr()

    sides = np.ones(count, int)
    for _ in range(ROUNDS):
        changed = False
        for scan in range(count):
            row = slice(links.indptr[scan], links.indptr[scan + 1])
            gain = links.data[row]
            agreement = sides[scan] * (gain @ sides[links.indices[row]])
            if agreement < -max(LEAST, doubt * np.abs(gain).sum()):
                sides[scan] *= -1
                changed = True
        if not changed:
            break
    _, groups = connected_components(links, directed=False)
    for group in np.unique(groups):
        members = groups == group
        if sides[members].sum() < 0:  # the larger part is right
            sides[members] *= -1
    return sides < 0
