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
from alice_nnunet.geometry import Triple

DRAWS = 100  # pairs tried for one sample before the data are called unmatchable


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
    """

    query: Volume
    key: Volume
    point: Triple
    match: Match
    rejected: int


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
    """

    query: Tensor
    key: Tensor
    query_case: list[str]
    key_case: list[str]
    score: Tensor
    rejected: Tensor

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
        )

    def draw(self, index: int) -> DrawnPair:
        """Draw the pair with this number, without reading its crops.

        Raises:
            NoMatch: DRAWS pairs in a row had too low a score.
        """
        rng = np.random.default_rng((*self.seed, index))

        for rejected in range(DRAWS):
            query, key = self.draw_volumes(rng)
            point = query.body.random_point(rng)
            match = self.matcher(point, query, key)
            if match.score >= self.min_score:
                return DrawnPair(query, key, point, match, rejected)

        raise NoMatch(
            f"{DRAWS} pairs in a row were rejected: no match reached the score {self.min_score}. "
            f"Check that the {len(self.queries)} volumes in {self.folder} show the same body region"
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
        query = self.queries[rng.integers(len(self.queries))]
        if self.same_volume:
            return query, query

        # The key is drawn from keys without the query: places from the query's on move up by one.
        own = self.place_in_keys.get(query, len(self.keys))
        others = len(self.keys) - (own < len(self.keys))
        place = int(rng.integers(others))
        if place >= own:
            place += 1
        return query, self.keys[place]


def empty_tensor(shape: tuple[int, ...]) -> Tensor:
    """A float32 tensor without content, in shared memory in a process of a DataLoader.

    DataLoader's own collation puts its batches there too: they are passed on without a copy.
    """
    if get_worker_info() is None:
        return torch.from_numpy(np.empty(shape, np.float32))  # NumPy asks for large pages

    storage = torch.UntypedStorage._new_shared(4 * math.prod(shape))
    return torch.empty(0, dtype=torch.float32).set_(storage, 0, shape)
