"""Is what the encoder learns about anatomy? A probe without labels.

It asks whether a crop finds the same body part in another person.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from alice_nnunet.data.pairs import PairBatch
from alice_nnunet.pretrain.runtime.device import autocast
from alice_nnunet.pretrain.training.state import State


@dataclass(frozen=True)
class MatchProbe:
    """How many crops find their match.

    Attributes:
        share: Of the crops, over both directions.
        among: Crops that a crop is compared with, in the mean.
        chance: Share that is found by chance.
    """

    share: float
    among: float
    chance: float


@torch.no_grad()
def matched_crops_found(state: State, batches: Iterable[PairBatch], precision: str) -> MatchProbe:
    """Do the two crops of aligned pairs find each other among the others?

    A crop is described by the mean of the online encoder's last features over its tokens.

    Args:
        state: The run whose encoder is probed.
        batches: Aligned pairs, as in training.
        precision: auto, fp32 or bf16.
    """
    state.model.eval()

    def described(crops: Tensor) -> Tensor:
        """(B, C, D, H, W) -> (B, E)"""
        with autocast(state.device, precision):
            features = state.model.encoder.features(crops.to(state.device))[-1]
        return features.float().mean((2, 3, 4))

    queries = []
    keys = []
    query_case: list[str] = []
    key_case: list[str] = []
    for batch in batches:
        queries.append(described(batch.query))
        keys.append(described(batch.key))
        query_case += batch.query_case
        key_case += batch.key_case
    return share_found(torch.cat(queries), torch.cat(keys), query_case, key_case)


def share_found(
    queries: Tensor, keys: Tensor, query_case: Sequence[str], key_case: Sequence[str]
) -> MatchProbe:
    """Do rows of the same number find each other?

    Where they show two people, a crop is compared with crops of other people alone: those of its
    own scan resemble it more. Where both are of one scan, nothing is left out.

    Args:
        queries: (P, E).
        keys: (P, E).
        query_case: Case of each query.
        key_case: Case of each key.
    """
    same_scan = np.array(query_case)[:, None] == np.array(key_case)[None]
    one_scan = same_scan.diagonal().copy()  # of the pairs
    of_others = torch.from_numpy(~same_scan | np.eye(len(one_scan), dtype=bool))
    for_query = of_others | torch.from_numpy(one_scan)[:, None]
    for_key = of_others.T | torch.from_numpy(one_scan)[:, None]
    candidates = torch.cat([for_query, for_key]).to(queries.device)

    similarity = centered(queries) @ centered(keys).T
    similarity = torch.cat([similarity, similarity.T]).masked_fill(~candidates, -torch.inf)
    own = torch.arange(len(queries), device=queries.device).repeat(2)
    found = similarity.argmax(1) == own

    among = candidates.sum(1).double()
    return MatchProbe(found.double().mean().item(), among.mean().item(), (1 / among).mean().item())


def centered(features: Tensor) -> Tensor:
    """Directions from the mean of all rows, of length 1: the mean tells nothing about any crop."""
    return F.normalize(features - features.mean(0), dim=1)
