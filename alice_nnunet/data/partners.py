"""Which other scans show the same place of the body: a table that is made once for each index.

For some places of every scan it holds how well each of some other scans matches them. A pair is
drawn from what is known to match, in place of trying scans until one does.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from alice_nnunet.errors import UserError
from alice_nnunet.files import replacing

LEVELS = 255  # of a score, which is rounded down
NO_REGION = -1


@dataclass(frozen=True)
class Partners:
    """The table of N scans, M places of each, K other scans for each.

    Attributes:
        cases: (N,) names of the scans.
        contents: (N,) checksums of the scans: the same scan under two names is one person.
        positions: (N, M, 3) float32, mm; NaN where a scan has fewer places.
        regions: (N, M) int16, slabs of the body along its axis; NO_REGION where that is unknown.
        others: (N, K) int32, numbers of the other scans; -1 where there are fewer.
        scores: (N, M, K) uint8, the least score of a match, times LEVELS; 0 where there is none.
        threshold: Score that matches with scans that do not show the place rarely reach.
    """

    cases: np.ndarray
    contents: np.ndarray
    positions: np.ndarray
    regions: np.ndarray
    others: np.ndarray
    scores: np.ndarray
    threshold: float

    def save(self, path: Path) -> None:
        """Write the table, completely or not at all."""
        with replacing(path) as partial, partial.open("wb") as file:
            np.savez(file, **vars(self))

    @classmethod
    def load(cls, path: Path) -> "Partners":
        """Read a table.

        Raises:
            UserError: It is missing or damaged.
        """
        try:
            with np.load(path) as file:
                content = {name: file[name] for name in cls.__dataclass_fields__}
        except Exception as error:  # numpy and zipfile raise many types
            raise UserError(
                f"{path} is missing or damaged ({type(error).__name__}: {error}): run alice-embed"
            ) from None
        return cls(**{**content, "threshold": float(content["threshold"])})

    @cached_property
    def number(self) -> dict[str, int]:
        """Name of a scan -> its number."""
        return {str(case): number for number, case in enumerate(self.cases)}

    def eligible(
        self, queries: Sequence[str], keys: Sequence[str], min_score: float
    ) -> "EligiblePartners":
        """What may be drawn: queries with keys, from a score on."""
        return EligiblePartners(self, queries, keys, min_score)


class EligiblePartners:
    """The part of a table from which the pairs of one stream are drawn.

    Args:
        table: Of the whole index.
        queries: Cases that the query may be.
        keys: Cases that the key may be.
        min_score: The least score of a match.

    Attributes:
        rows: Numbers of the queries that have a partner.
        allowed: (N, M, K) bool, whether a key may be drawn for a place.
    """

    def __init__(
        self, table: Partners, queries: Sequence[str], keys: Sequence[str], min_score: float
    ):
        self.table = table

        is_key = np.zeros(len(table.cases) + 1, bool)  # the last one for others = -1
        is_key[[table.number[case] for case in keys if case in table.number]] = True
        other_person = table.contents[table.others] != table.contents[:, None]
        allowed_key = is_key[table.others] & other_person  # (N, K)

        level = int(np.ceil(min_score * LEVELS))
        self.allowed = (table.scores >= max(1, level)) & allowed_key[:, None]

        has_partner = self.allowed.any((1, 2))
        numbers = [table.number[case] for case in queries if case in table.number]
        self.rows = np.array([number for number in numbers if has_partner[number]], int)

    def draw_query(self, rng: np.random.Generator) -> int:
        """The number of a query, all equally likely."""
        return int(self.rows[rng.integers(len(self.rows))])

    def draw_query_of_region(self, rng: np.random.Generator) -> tuple[int, int]:
        """A region with even odds, then a query that shows it, then a place of it.

        Returns:
            The numbers of the query and of the place.
        """
        region = self.known_regions[rng.integers(len(self.known_regions))]
        here = self.has_key[self.rows] & (self.table.regions[self.rows] == region)
        shown = np.flatnonzero(here.any(1))
        row = shown[rng.integers(len(shown))]
        places = np.flatnonzero(here[row])
        return int(self.rows[row]), int(places[rng.integers(len(places))])

    @cached_property
    def has_key(self) -> np.ndarray:
        """(N, M) bool, whether a place has a partner."""
        return self.allowed.any(2)

    @cached_property
    def known_regions(self) -> np.ndarray:
        """Regions that occur; NO_REGION counts as one."""
        return np.unique(self.table.regions[self.rows][self.has_key[self.rows]])

    def nearest_place(self, row: int, point: np.ndarray) -> int:
        """The number of the place of a scan that is nearest to a point, (3,) mm."""
        distance = ((self.table.positions[row] - point) ** 2).sum(1)
        return int(np.nanargmin(distance))

    def any_place(self, row: int, rng: np.random.Generator) -> int:
        """The number of a place of a scan that has a partner, all equally likely."""
        places = np.flatnonzero(self.has_key[row])
        return int(places[rng.integers(len(places))])

    def keys_at(self, row: int, place: int, rng: np.random.Generator) -> list[str]:
        """The scans that show a place, in random order."""
        numbers = self.table.others[row][self.allowed[row, place]]
        return [str(self.table.cases[number]) for number in rng.permutation(numbers)]
