"""The learned matcher: the place in one volume whose surroundings are most like those of a point in another."""

from functools import lru_cache
from pathlib import Path

import numpy as np

from alice_nnunet.data.volumes import Volume
from alice_nnunet.geometry import Triple
from alice_nnunet.matcher.embedding import BLOCK, NEIGHBOURS, Embedding
from alice_nnunet.matcher.index import open_embedding
from alice_nnunet.data.match import Match

OPEN_FILES = 512  # embeddings that stay mapped


def match_millimetres(
    point: np.ndarray, query: Embedding, key: Embedding
) -> tuple[np.ndarray, float]:
    """Where a point lies in key, and how alike the two places are. point: (z, y, x) mm in query. Returns mm in key, score.

    Not the vector of the point alone is looked for but those around it too, at the same distances in mm: one vector finds
    a place that looks alike, its neighbourhood the place in the body. What the point is off its nearest node, the match is
    off the node that was found.
    """
    at = query.position(query.nearest(point))
    found, score = key.find(query.vectors(at + NEIGHBOURS * BLOCK * np.array(key.step)))
    return key.position(found) + point - at, score


def return_distance(
    point: np.ndarray, match: np.ndarray, query: Embedding, key: Embedding
) -> float:
    """How far from point its match leads back (mm): small for a fixed point of A -> B -> A."""
    back, _ = match_millimetres(match, key, query)
    return float(np.linalg.norm(back - point))


class EmbeddingMatcher:
    """Matches between the volumes whose embeddings are in folder.

    max_return: mm; a match that leads back to a place further away than this scores 0. None: not checked.
    """

    def __init__(self, folder: Path, max_return: float | None = None):
        self.folder, self.max_return = Path(folder), max_return

    def __call__(self, point: Triple, query: Volume, key: Volume) -> Match:
        """point: voxel (z, y, x) of query. Raises UserError where an embedding is missing or damaged."""
        first, second = (opened(self.folder, volume.name) for volume in (query, key))
        place = (np.array(point) + 0.5) * query.spacing
        found, score = match_millimetres(place, first, second)
        if (
            self.max_return is not None
            and return_distance(place, found, first, second) > self.max_return
        ):
            score = 0.0
        return Match(tuple(int(i) for i in np.floor(found / key.spacing)), score)


@lru_cache(OPEN_FILES)
def opened(folder: Path, case: str) -> Embedding:
    """open_embedding, kept open: each process maps a file once."""
    return open_embedding(folder, case)
