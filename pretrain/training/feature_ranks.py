"""The effective rank of features over the steps between two log lines."""

from dataclasses import dataclass, field

from torch import Tensor

from alice_nnunet.model.losses import effective_rank

LOW_ENTROPY = 0.25  # share of the largest possible entropy of the axes under which a run warns


@dataclass(frozen=True)
class FeatureRank:
    """The effective rank of one kind of features.

    Attributes:
        value: Effective rank.
        floor: Value under which the features lie along too few directions.
        crops: Independent samples that it was measured on. Tokens of one crop are not independent.
    """

    value: float
    floor: float
    crops: int


@dataclass
class FeatureRanks:
    """Second moments of features, summed over steps.

    One step has too few crops: the rank of n samples is n - 1 at most. Sums stay on the device, so
    that no step waits for them; eigenvalues are computed once for each log line.

    Attributes:
        sums: (1 + C, C) for each kind of features, see losses.second_moments.
        steps: Number of steps.
        crops: In all of them.
    """

    sums: dict[str, Tensor] = field(default_factory=dict)
    steps: int = 0
    crops: int = 0

    def add(self, second_moments: dict[str, Tensor], crops: int) -> None:
        """Add a step with so many crops."""
        self.steps += 1
        self.crops += crops
        for name, moments in second_moments.items():
            self.sums[name] = self.sums[name] + moments if name in self.sums else moments

    def take(self) -> dict[str, FeatureRank]:
        """The ranks over the steps so far, which are forgotten."""
        ranks = {}
        for name, total in self.sums.items():
            value = effective_rank(total / self.steps).item()
            floor = lowest_rank(self.crops, channels=total.shape[1])
            ranks[name] = FeatureRank(value, floor, self.crops)

        self.sums = {}
        self.steps = 0
        self.crops = 0
        return ranks


def lowest_rank(crops: int, channels: int) -> float:
    """The floor of an effective rank: LOW_ENTROPY of the largest entropy, the logarithm of a rank.

    The largest rank is that of independent directions, min(crops - 1, channels).
    """
    largest = max(1, min(crops - 1, channels))
    return largest**LOW_ENTROPY
