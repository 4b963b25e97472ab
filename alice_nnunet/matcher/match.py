"""What a matcher answers."""

from dataclasses import dataclass

from alice_nnunet.geometry import Triple


@dataclass(frozen=True)
class Match:
    """Where a point of one volume lies in another. score: 1 is certain, 0 is no match."""

    point: Triple
    score: float
