"""The answer of a matcher, and what a matcher is.

A matcher takes a point (voxel of the query), the query and the key, and answers where the same
place of the body is in the key.
"""

from collections.abc import Callable
from dataclasses import dataclass

from alice_nnunet.data.volumes import Volume
from alice_nnunet.geometry import Triple


@dataclass(frozen=True)
class Match:
    """A point of one volume in another.

    Attributes:
        point: voxel (z, y, x) of the key.
        score: 1 is certain, 0 is no match.
    """

    point: Triple
    score: float


Matcher = Callable[[Triple, Volume, Volume], Match]
