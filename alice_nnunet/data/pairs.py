"""Aligned crops of one body part from two people (Alice, Sec. 4.2 and A.1)."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch.utils.data import Dataset

from alice_nnunet.data.volumes import Volume, open_volume
from alice_nnunet.geometry import Triple, crop_around
from alice_nnunet.matcher.match import Matcher

DRAWS = 100  # pairs tried for one sample before the data are called unmatchable


class NoMatch(RuntimeError):
    """Pairs of volumes of which (almost) nothing matches."""


class AlignedPairs(Dataset):
    """Item i is a pair of crops that depends on (seed, i) alone: not on workers, order, or what was drawn before.

    folder: preprocessed volumes. queries, keys: case names; q comes from queries and k, another case, from keys.
    size: of the crops in voxels. min_score: pairs below are rejected and redrawn. same_volume: k is q itself, the
    baseline without another person.
    """

    def __init__(self, folder: Path, queries: Sequence[str], keys: Sequence[str], size: Triple,
                 matcher: Matcher, min_score: float, seed: Sequence[int], length: int, same_volume: bool = False):
        if not same_volume and len(set(queries) | set(keys)) < 2:
            raise ValueError(f"aligned pairs need two different cases, got {sorted(set(queries) | set(keys))}")
        self.folder, self.queries, self.keys, self.size = Path(folder), list(queries), list(keys), size
        self.matcher, self.min_score, self.seed, self.length = matcher, min_score, tuple(seed), length
        self.same_volume = same_volume
        self.place_in_keys = {name: place for place, name in enumerate(self.keys)}

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict:
        """Crops query and key, (C, *size) float32, their cases, the match's score, and how many pairs were rejected."""
        rng = np.random.default_rng((*self.seed, index))
        for rejected in range(DRAWS):
            query, key = self.draw_volumes(rng)
            point = query.body.random_point(rng)
            match = self.matcher(point, query, key)
            if match.score >= self.min_score:
                return {"query": crop_around(query.image, point, self.size), "key": crop_around(key.image, match.point, self.size),
                        "query_case": query.name, "key_case": key.name, "score": match.score, "rejected": rejected}
        raise NoMatch(f"{DRAWS} pairs in a row were rejected: no match reached the score {self.min_score}. "
                      f"Do the {len(self.queries)} volumes in {self.folder} show the same body region?")

    def draw_volumes(self, rng: np.random.Generator) -> tuple[Volume, Volume]:
        """Two different volumes, every ordered pair equally likely; or one twice."""
        query = self.queries[rng.integers(len(self.queries))]
        if self.same_volume:
            volume = open_volume(self.folder, query)
            return volume, volume
        own = self.place_in_keys.get(query, len(self.keys))
        drawn = int(rng.integers(len(self.keys) - (own < len(self.keys))))
        return open_volume(self.folder, query), open_volume(self.folder, self.keys[drawn + (drawn >= own)])
