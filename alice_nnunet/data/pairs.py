"""Aligned crops of one body part from two people (Alice, Sec. 4.2 and A.1)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from alice_nnunet.data.volumes import Volume, open_volume
from alice_nnunet.geometry import Triple
from alice_nnunet.data.match import Match, Matcher

DRAWS = 100  # pairs tried for one sample before the data are called unmatchable


class NoMatch(RuntimeError):
    """Pairs of volumes of which (almost) nothing matches."""


@dataclass(frozen=True)
class DrawnPair:
    """What makes a pair: the crops' volumes, their middle voxels (point; match.point in key), and how many were rejected before."""

    query: Volume
    key: Volume
    point: Triple
    match: Match
    rejected: int


class AlignedPairs(Dataset):
    """Item i is a pair of crops that depends on (seed, i) alone: not on workers, order, or what was drawn before.

    folder: preprocessed volumes. queries, keys: case names; q comes from queries and k, another case, from keys.
    size: of the crops in voxels. min_score: pairs below are rejected and redrawn. same_volume: k is q itself, the
    baseline without another person.
    """

    def __init__(
        self,
        folder: Path,
        queries: Sequence[str],
        keys: Sequence[str],
        size: Triple,
        matcher: Matcher,
        min_score: float,
        seed: Sequence[int],
        length: int,
        same_volume: bool = False,
    ):
        if not same_volume and len(set(queries) | set(keys)) < 2:
            raise ValueError(
                f"aligned pairs need two different cases, got {sorted(set(queries) | set(keys))}"
            )
        self.folder, self.queries, self.keys, self.size = (
            Path(folder),
            list(queries),
            list(keys),
            size,
        )
        self.matcher, self.min_score, self.seed, self.length = (
            matcher,
            min_score,
            tuple(seed),
            length,
        )
        self.same_volume = same_volume
        self.place_in_keys = {name: place for place, name in enumerate(self.keys)}

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict:
        """Crops query and key, (C, *size) float32, their cases, the match's score, and how many pairs were rejected."""
        pair = self.draw(index)
        return {
            "query": pair.query.read_crop(pair.point, self.size),
            "key": pair.key.read_crop(pair.match.point, self.size),
            "query_case": pair.query.name,
            "key_case": pair.key.name,
            "score": pair.match.score,
            "rejected": pair.rejected,
        }

    def batch(self, indices: Sequence[int]) -> dict:
        """These pairs as DataLoader would put them together: query and key are (B, C, *size) float32; scores and numbers of
        rejected pairs tensors, cases lists. Each crop goes straight into its place, in shared memory where a DataLoader's process reads it.
        """
        drawn = [self.draw(index) for index in indices]
        shape = (len(drawn), drawn[0].query.image.shape[0], *self.size)
        query, key = empty_tensor(shape), empty_tensor(shape)
        for row, pair in enumerate(drawn):
            pair.query.read_crop(pair.point, self.size, out=query[row].numpy())
            pair.key.read_crop(pair.match.point, self.size, out=key[row].numpy())
        return {
            "query": query,
            "key": key,
            "query_case": [p.query.name for p in drawn],
            "key_case": [p.key.name for p in drawn],
            "score": torch.tensor([p.match.score for p in drawn], dtype=torch.float64),
            "rejected": torch.tensor([p.rejected for p in drawn]),
        }

    def draw(self, index: int) -> DrawnPair:
        """Pair number index, before its crops are read. Raises NoMatch."""
        rng = np.random.default_rng((*self.seed, index))
        for rejected in range(DRAWS):
            query, key = self.draw_volumes(rng)
            point = query.body.random_point(rng)
            match = self.matcher(point, query, key)
            if match.score >= self.min_score:
                return DrawnPair(query, key, point, match, rejected)
        raise NoMatch(
            f"{DRAWS} pairs in a row were rejected: no match reached the score {self.min_score}. "
            f"Do the {len(self.queries)} volumes in {self.folder} show the same body region?"
        )

    def draw_volumes(self, rng: np.random.Generator) -> tuple[Volume, Volume]:
        """Two different volumes, every ordered pair equally likely; or one twice."""
        query, key = self.draw_cases(rng)
        volume = open_volume(self.folder, query)
        return volume, volume if query == key else open_volume(self.folder, key)

    def draw_cases(self, rng: np.random.Generator) -> tuple[str, str]:
        """The names of the two."""
        query = self.queries[rng.integers(len(self.queries))]
        if self.same_volume:
            return query, query
        own = self.place_in_keys.get(query, len(self.keys))
        drawn = int(rng.integers(len(self.keys) - (own < len(self.keys))))
        return query, self.keys[drawn + (drawn >= own)]


def empty_tensor(shape: tuple[int, ...]) -> Tensor:
    """float32; in a DataLoader's process in shared memory, where DataLoader's own collation puts its batches too."""
    if get_worker_info() is None:
        return torch.from_numpy(
            np.empty(shape, np.float32)
        )  # numpy asks for large pages, torch does not
    storage = torch.UntypedStorage._new_shared(4 * math.prod(shape))
    return torch.empty(0, dtype=torch.float32).set_(storage, 0, shape)
