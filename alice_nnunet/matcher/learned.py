"""The learned matcher: the place whose surroundings are most similar to those of a point."""

from functools import lru_cache
from pathlib import Path

import numpy as np

from alice_nnunet.data.match import Match
from alice_nnunet.data.volumes import Volume
from alice_nnunet.geometry import Triple, triple
from alice_nnunet.matcher.embedding import BLOCK, NEIGHBOURS, Embedding
from alice_nnunet.matcher.index import open_embedding

OPEN_FILES = 512  # embeddings that stay mapped


def match_millimetres(
    point: np.ndarray, query: Embedding, key: Embedding
) -> tuple[np.ndarray, float]:
    """Where a point of the query lies in the key.

    The search is not for the vector of the point alone but for those around it too, at the same
    distances in mm: one vector finds a place that looks similar, its neighbourhood the place in the
    body. The match is as far from the node that was found as the point is from its nearest node.

    Args:
        point: (z, y, x) mm in the query.
        query: embedding of the query.
        key: embedding of the key.

    Returns:
        match: (z, y, x) mm in the key.
        score: how similar the two places are, at most 1.
    """
    start = query.position(query.nearest(point))
    around = start + NEIGHBOURS * BLOCK * np.array(key.step)
    node, score = key.find(query.vectors(around))
    return key.position(node) + point - start, score


def return_distance(
    point: np.ndarray, match: np.ndarray, query: Embedding, key: Embedding
) -> float:
    """How far from point its match leads back, mm: small for a fixed point of A -> B -> A."""
    back, _ = match_millimetres(match, key, query)
    return float(np.linalg.norm(back - point))


class EmbeddingMatcher:
    """Matches volumes by their embeddings.

    Args:
        folder: the index, which holds the embeddings of the volumes.
        max_return: mm; a match that leads back to a place further away than this scores 0. None:
            not checked.
    """

    def __init__(self, folder: Path, max_return: float | None = None):
        self.folder = Path(folder)
        self.max_return = max_return

    def __call__(self, point: Triple, query: Volume, key: Volume) -> Match:
        """The match of a point, voxel (z, y, x) of query.

        Raises:
            UserError: an embedding is missing or damaged.
        """
        query_embedding = opened(self.folder, query.name)
        key_embedding = opened(self.folder, key.name)

        place = (np.array(point) + 0.5) * query.spacing  # mm
        found, score = match_millimetres(place, query_embedding, key_embedding)
        if self.max_return is not None:
            distance = return_distance(place, found, query_embedding, key_embedding)
            if distance > self.max_return:
                score = 0.0

        voxel = np.floor(found / key.spacing)
        return Match(triple(int(i) for i in voxel), score)

    def vectors_of_tokens(
        self, volume: Volume, point: Triple, size: Triple, grid: Triple
    ) -> np.ndarray:
        """The vectors at the middles of the tokens of a crop.

        Args:
            volume: that the crop is of.
            point: the crop's middle voxel.
            size: voxels of the crop.
            grid: tokens along each axis.

        Returns:
            (N, C) float32, z slowest; 0 outside the body.
        """
        start = np.array(point) - np.array(size) // 2
        along = [(np.arange(tokens) + 0.5) * n / tokens for n, tokens in zip(size, grid)]
        middles = np.stack(np.meshgrid(*along, indexing="ij"), -1).reshape(-1, 3)  # voxels
        return opened(self.folder, volume.name).vectors((start + middles) * volume.spacing)


@lru_cache(OPEN_FILES)
def opened(folder: Path, case: str) -> Embedding:
    """open_embedding, kept open: each process maps a file once."""
    return open_embedding(folder, case)
