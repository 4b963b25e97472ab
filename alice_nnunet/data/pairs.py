"""Aligned crops of one body part from two people (Alice, Sec. 4.2 and A.1)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from alice_nnunet.data.match import Match, Matcher
from alice_nnunet.data.volumes import Volume, open_volume
from alice_nnunet.geometry import Triple, triple

DRAWS = 100  # pairs tried for one sample before it takes what there is
NEAR_MISS = 0.9  # share of the minimum score from which the best of these is taken
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
        point: Middle voxel (z, y, x) of Q in query.
        match: Middle voxel of K in key, and the matcher's score.
        rejected: Pairs that were drawn before this one and rejected.
        kind: MATCHED, or what was taken where nothing matched: BELOW or SAME_SCAN.
    """

    query: Volume
    key: Volume
    point: Triple
    match: Match
    rejected: int
    kind: str = MATCHED


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
    """

    query: Tensor
    key: Tensor
    query_case: list[str]
    key_case: list[str]
    score: Tensor
    rejected: Tensor
    kind: list[str]

    @property
    def unmatched(self) -> list[int]:
        """Rows of the pairs that do not match."""
        return [row for row, kind in enumerate(self.kind) if kind != MATCHED]

    def pin_memory(self) -> "PairBatch":
        """The batch with its crops in pinned memory; DataLoader calls this where it is to pin."""
        return replace(self, query=self.query.pin_memory(), key=self.key.pin_memory())


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
    """

    folder: Path
    queries: Sequence[str]
    keys: Sequence[str]
    size: Triple
    matcher: Matcher
    min_score: float
    seed: Sequence[int]
    same_volume: bool = False

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
            pair.query.read_crop(pair.point, self.size, out=query[row].numpy())
            pair.key.read_crop(pair.match.point, self.size, out=key[row].numpy())

        return PairBatch(
            query,
            key,
            query_case=[pair.query.name for pair in drawn],
            key_case=[pair.key.name for pair in drawn],
            score=torch.tensor([pair.match.score for pair in drawn], dtype=torch.float64),
            rejected=torch.tensor([pair.rejected for pair in drawn]),
            kind=[pair.kind for pair in drawn],
        )

    def draw(self, index: int) -> DrawnPair:
        """Draw the pair with this number, without reading its crops.

        A draw always ends. Where DRAWS pairs in a row score too low, the best of them is taken, or
        two crops of one scan where that is no near miss.
        """
        rng = np.random.default_rng((*self.seed, index))
        best: DrawnPair | None = None

        for rejected in range(DRAWS):
            query, key = self.draw_volumes(rng)
            point = query.body.random_point(rng)
            match = self.matcher(point, query, key)
            if match.score >= self.min_score:
                return DrawnPair(query, key, point, match, rejected)
            if best is None or match.score > best.match.score:
                best = DrawnPair(query, key, point, match, DRAWS, BELOW)

        assert best is not None
        if best.match.score >= NEAR_MISS * self.min_score:
            return best
        return self.same_scan(best.query, best.point, DRAWS, rng)

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


def empty_tensor(shape: tuple[int, ...]) -> Tensor:
    """A float32 tensor without content, in shared memory in a process of a DataLoader.

    DataLoader's own collation puts its batches there too: they are passed on without a copy.
    """
    if get_worker_info() is None:
        return torch.from_numpy(np.empty(shape, np.float32))  # NumPy asks for large pages

    storage = torch.UntypedStorage._new_shared(4 * math.prod(shape))
    tensor = torch.empty(0, dtype=torch.float32)
    return tensor.set_(storage, 0, shape)  # type: ignore[call-overload]  # torch lists no such call
