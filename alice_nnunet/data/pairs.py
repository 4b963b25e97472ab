"""Aligned crops of one body part from two people (Alice, Sec. 4.2 and A.1)."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from alice_nnunet.data.match import Match, Matcher
from alice_nnunet.data.partners import EligiblePartners, Partners
from alice_nnunet.data.volumes import Volume, open_volume
from alice_nnunet.geometry import Triple, shift_inside, triple

DRAWS = 100  # pairs tried for one sample before it takes what there is
NEAR_MISS = 0.9  # share of the minimum score from which the best of these is taken
EVEN_POINTS = 16  # points drawn evenly over a body before a place that matches is taken
PLACES_TRIED = 4  # of one query, before it is given up
AROUND_PLACE = 15.0  # mm from a place of a region, along each axis
LARGEST_SHIFT = 0.25  # of the crop, along each axis, between two crops of the same scan

# How the two crops of a pair were found.
MATCHED = "matched"
BELOW = "below the minimum score"
SAME_SCAN = "two crops of the same scan"

CHECKED_PAIRS = 32  # drawn before a run starts
SMALLEST_SHARE = 0.1  # of them that must match


class NoMatch(RuntimeError):
    """Pairs of volumes of which (almost) nothing matches."""


@dataclass(frozen=True)
class DrawnPair:
    """Two volumes, and where the crops of a pair lie in them.

    Attributes:
        query: Volume of the crop Q.
        key: Volume of the crop K.
        point: Voxel (z, y, x) of query that was drawn.
        match: The same place in key, and the matcher's score.
        rejected: Pairs that were drawn before this one and rejected.
        kind: MATCHED, or what was taken where nothing matched: BELOW or SAME_SCAN.
        shift: Voxels from these two places to the middles of the crops.
    """

    query: Volume
    key: Volume
    point: Triple
    match: Match
    rejected: int
    kind: str = MATCHED
    shift: Triple = (0, 0, 0)

    @property
    def query_middle(self) -> Triple:
        """Middle voxel of Q in query."""
        return triple(p + s for p, s in zip(self.point, self.shift))

    @property
    def key_middle(self) -> Triple:
        """Middle voxel of K in key."""
        return triple(p + s for p, s in zip(self.match.point, self.shift))

    def moved_inside(self, size: Triple) -> "DrawnPair":
        """The pair with crops of size voxels inside their scans, where one shift of both does it.

        Both crops move by the same distance, so their places still belong together.
        """
        sizes = (self.query.body.size, self.key.body.size)
        return replace(self, shift=shift_inside((self.point, self.match.point), sizes, size))


@dataclass(frozen=True)
class PairBatch:
    """B pairs of crops, and what is known of them.

    Attributes:
        query: Crops Q, (B, C, D, H, W) float32.
        key: Crops K of the same body parts in other people, (B, C, D, H, W) float32.
        query_case: Case of each Q.
        key_case: Case of each K.
        score: The matcher's score of each pair, (B,) float64.
        rejected: Pairs that were drawn and rejected before each of these, (B,) int64.
        kind: MATCHED, BELOW or SAME_SCAN for each pair.
        query_anatomy: The matcher's vectors at the tokens of each Q, (B, N, A), where wanted.
        key_anatomy: Those of each K.
    """

    query: Tensor
    key: Tensor
    query_case: list[str]
    key_case: list[str]
    score: Tensor
    rejected: Tensor
    kind: list[str]
    query_anatomy: Tensor | None = None
    key_anatomy: Tensor | None = None

    @property
    def unmatched(self) -> list[int]:
        """Rows of the pairs that do not match."""
        return [row for row, kind in enumerate(self.kind) if kind != MATCHED]

    def pin_memory(self) -> "PairBatch":
        """The batch with its crops in pinned memory; DataLoader calls this where it is to pin."""
        pinned = {}
        for name in ("query", "key", "query_anatomy", "key_anatomy"):
            values = getattr(self, name)
            if values is not None:
                pinned[name] = values.pin_memory()
        return replace(self, **pinned)


@dataclass(frozen=True)
class AlignedPairs:
    """A stream of pairs. Pair i depends on (seed, i) alone, not on workers or earlier draws.

    Attributes:
        folder: Preprocessed volumes.
        queries: Cases that the query is drawn from.
        keys: Cases that the key, another case than the query, is drawn from.
        size: Voxels (z, y, x) of the crops.
        matcher: Finds the same body part in another volume.
        min_score: Pairs with a lower score are rejected, and others drawn in their place.
        seed: Words of the seed.
        same_volume: The key is the query itself: the baseline without another person.
        partners: Which scans show the same places. None: any pair is drawn and tried, as the paper
            does.
        anatomy: The matcher's vectors at the tokens of the crop around a point, (N, A), where they
            are wanted beside the crops.
        by_region: With partners, every region of the body is equally likely in place of every scan.
        inside: Both crops are shifted alike, so that they lie in their scans where they can;
            otherwise their middles are the two places.
    """

    folder: Path
    queries: Sequence[str]
    keys: Sequence[str]
    size: Triple
    matcher: Matcher
    min_score: float
    seed: Sequence[int]
    same_volume: bool = False
    partners: Partners | None = None
    by_region: bool = False
    inside: bool = False
    anatomy: Callable[[Volume, Triple], np.ndarray] | None = None

    def __post_init__(self):
        cases = set(self.queries) | set(self.keys)
        if len(cases) < 2 and not self.same_volume:
            raise ValueError(f"aligned pairs need two different cases, got {sorted(cases)}")

    @cached_property
    def place_in_keys(self) -> dict[str, int]:
        return {case: place for place, case in enumerate(self.keys)}

    def batch(self, indices: Sequence[int]) -> PairBatch:
        """Draw the pairs with these numbers and read their crops.

        Each crop is read straight into its place in the batch, which lies in shared memory where a
        process of a DataLoader reads it.
        """
        drawn = [self.draw(index) for index in indices]

        shape = (len(drawn), drawn[0].query.image.shape[0], *self.size)
        query = empty_tensor(shape)
        key = empty_tensor(shape)
        for row, pair in enumerate(drawn):
            pair.query.read_crop(pair.query_middle, self.size, out=query[row].numpy())
            pair.key.read_crop(pair.key_middle, self.size, out=key[row].numpy())

        return PairBatch(
            query,
            key,
            query_case=[pair.query.name for pair in drawn],
            key_case=[pair.key.name for pair in drawn],
            score=torch.tensor([pair.match.score for pair in drawn], dtype=torch.float64),
            rejected=torch.tensor([pair.rejected for pair in drawn]),
            kind=[pair.kind for pair in drawn],
            query_anatomy=self.vectors_at([(pair.query, pair.query_middle) for pair in drawn]),
            key_anatomy=self.vectors_at([(pair.key, pair.key_middle) for pair in drawn]),
        )

    def vectors_at(self, places: Sequence[tuple[Volume, Triple]]) -> Tensor | None:
        """The matcher's vectors of the crops around points, (B, N, A); None if not wanted."""
        if self.anatomy is None:
            return None
        vectors = [self.anatomy(volume, point) for volume, point in places]
        return torch.from_numpy(np.stack(vectors))

    def draw(self, index: int) -> DrawnPair:
        """Draw the pair with this number, without reading its crops."""
        pair = self.draw_places(np.random.default_rng((*self.seed, index)))
        return pair.moved_inside(self.size) if self.inside else pair

    def draw_places(self, rng: np.random.Generator) -> DrawnPair:
        """Draw two volumes and a place that both show.

        A draw always ends. Where all pairs that it tries score too low, the best of them is taken,
        or two crops of one scan where that is no near miss.
        """
        has_partners = self.eligible is not None and len(self.eligible.rows) > 0
        candidates = self.likely_pairs(rng) if has_partners else self.random_pairs(rng)
        best: DrawnPair | None = None
        rejected = 0

        for query, point, key in candidates:
            match = self.matcher(point, query, key)
            if match.score >= self.min_score:
                return DrawnPair(query, key, point, match, rejected)
            if best is None or match.score > best.match.score:
                best = DrawnPair(query, key, point, match, 0, BELOW)
            rejected += 1

        assert best is not None
        if best.match.score >= NEAR_MISS * self.min_score:
            return replace(best, rejected=rejected)
        return self.same_scan(best.query, best.point, rejected, rng)

    @cached_property
    def eligible(self) -> EligiblePartners | None:
        """The partners that this stream may draw."""
        if self.partners is None or self.same_volume:
            return None
        return self.partners.eligible(self.queries, self.keys, self.min_score)

    def random_pairs(self, rng: np.random.Generator) -> Iterator[tuple[Volume, Triple, Volume]]:
        """DRAWS times any two volumes, and a point of the first."""
        for _ in range(DRAWS):
            query, key = self.draw_volumes(rng)
            yield query, query.body.random_point(rng), key

    def likely_pairs(self, rng: np.random.Generator) -> Iterator[tuple[Volume, Triple, Volume]]:
        """A volume, points of it, and for each of them the volumes that show it.

        Points are drawn evenly over the body. Those that no other volume shows are passed over;
        after EVEN_POINTS of them a place that is known to match is taken.
        """
        eligible = self.eligible
        assert eligible is not None

        if self.by_region:
            row, place = eligible.draw_query_of_region(rng)
        else:
            row = eligible.draw_query(rng)
        query = open_volume(self.folder, str(eligible.table.cases[row]))

        for number in range(PLACES_TRIED):
            if self.by_region and number == 0:
                point = self.near_place(eligible, row, place, query, rng)
            else:
                point, place = self.draw_point(eligible, row, query, rng)
            for case in eligible.keys_at(row, place, rng):
                yield query, point, open_volume(self.folder, case)

    def draw_point(
        self, eligible: EligiblePartners, row: int, query: Volume, rng: np.random.Generator
    ) -> tuple[Triple, int]:
        """A point of a body that other volumes show, and the place of the table next to it."""
        for _ in range(EVEN_POINTS):
            point = query.body.random_point(rng)
            place = eligible.nearest_place(row, (np.array(point) + 0.5) * query.spacing)
            if eligible.has_key[row, place]:
                return point, place

        place = eligible.any_place(row, rng)
        return voxel_of(eligible, row, place, query), place

    @staticmethod
    def near_place(
        eligible: EligiblePartners, row: int, place: int, query: Volume, rng: np.random.Generator
    ) -> Triple:
        """A voxel of the body up to AROUND_PLACE from a place of the table, else that place."""
        shift = rng.uniform(-AROUND_PLACE, AROUND_PLACE, 3)
        voxel = np.floor((eligible.table.positions[row, place] + shift) / query.spacing)
        near = triple(int(i) for i in voxel)
        return near if query.body.contains(near) else voxel_of(eligible, row, place, query)

    def same_scan(
        self, query: Volume, point: Triple, rejected: int, rng: np.random.Generator
    ) -> DrawnPair:
        """Two overlapping crops of one scan. The score is NaN: nothing was matched."""
        shifted = []
        for p, edge, n in zip(point, self.size, query.body.size):
            largest = int(LARGEST_SHIFT * edge)
            shift = int(rng.integers(-largest, largest + 1))
            shifted.append(min(max(p + shift, 0), n - 1))

        match = Match(triple(shifted), math.nan)
        return DrawnPair(query, query, point, match, rejected, SAME_SCAN)

    def check(self) -> None:
        """Draw the first pairs of the stream, to see whether these volumes match at all.

        Raises:
            NoMatch: (Nearly) none of them does.
        """
        drawn = [self.draw(index) for index in range(CHECKED_PAIRS)]
        matched = sum(pair.kind == MATCHED for pair in drawn)
        if matched >= SMALLEST_SHARE * CHECKED_PAIRS:
            return

        raise NoMatch(
            f"{matched} of the first {CHECKED_PAIRS} pairs of crops reach the match score "
            f"{self.min_score}: (nearly) nothing in the {len(self.queries)} volumes in "
            f"{self.folder} matches. Check that they show the same body region, or lower min_score"
        )

    def draw_volumes(self, rng: np.random.Generator) -> tuple[Volume, Volume]:
        """Two different volumes, every ordered pair equally likely; with same_volume one, twice."""
        query_case, key_case = self.draw_cases(rng)

        query = open_volume(self.folder, query_case)
        if key_case == query_case:
            return query, query
        return query, open_volume(self.folder, key_case)

    def draw_cases(self, rng: np.random.Generator) -> tuple[str, str]:
        """The names of the query and the key."""
        query = self.queries[int(rng.integers(len(self.queries)))]
        if self.same_volume:
            return query, query

        # The key is drawn from keys without the query: places from the query's on move up by one.
        own = self.place_in_keys.get(query, len(self.keys))
        others = len(self.keys) - (own < len(self.keys))
        place = int(rng.integers(others))
        if place >= own:
            place += 1
        return query, self.keys[place]


def noise_pairs(
    number: int, shape: tuple[int, ...], device: torch.device | str = "cpu"
) -> PairBatch:
    """So many pairs of crops of noise, (C, D, H, W) each, to measure a step with."""
    return PairBatch(
        query=torch.rand((number, *shape), device=device),
        key=torch.rand((number, *shape), device=device),
        query_case=["noise"] * number,
        key_case=["noise"] * number,
        score=torch.ones(number, dtype=torch.float64),
        rejected=torch.zeros(number, dtype=torch.int64),
        kind=[MATCHED] * number,
    )


def voxel_of(eligible: EligiblePartners, row: int, place: int, query: Volume) -> Triple:
    """The voxel of a volume in which a place of the table lies."""
    voxel = np.floor(eligible.table.positions[row, place] / query.spacing)
    last = np.array(query.body.size) - 1
    return triple(int(i) for i in np.clip(voxel, 0, last))


def empty_tensor(shape: tuple[int, ...]) -> Tensor:
    """A float32 tensor without content, in shared memory in a process of a DataLoader.

    DataLoader's own collation puts its batches there too: they are passed on without a copy.
    """
    if get_worker_info() is None:
        return torch.from_numpy(np.empty(shape, np.float32))  # NumPy asks for large pages

    storage = torch.UntypedStorage._new_shared(4 * math.prod(shape))
    tensor = torch.empty(0, dtype=torch.float32)
    return tensor.set_(storage, 0, shape)  # type: ignore[call-overload]  # torch lists no such call
