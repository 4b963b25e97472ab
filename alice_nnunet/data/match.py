"""What a matcher answers."""

from collections.abc import Callable
from dataclasses import dataclass

from alice_nnunet.data.volumes import Volume
from alice_nnunet.geometry import Triple


@dataclass(frozen=True)
class Match:
    """Where a point of one volume lies in another. score: 1 is certain, 0 is no match."""

    point: Triple
    score: float


Matcher = Callable[[Triple, Volume, Volume], Match]  # point (voxel of the query), query, key


def match_same(point: Triple, query: Volume, key: Volume) -> Match:
    """The point itself, for pairs of a volume with itself."""
    return Match(point, 1.0)
