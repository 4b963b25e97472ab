"""Is what the encoder learns about anatomy? A probe without labels.

It asks whether a crop finds the same body part in another person.
"""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from alice_nnunet.data.pairs import PairBatch
from alice_nnunet.pretrain.runtime.device import autocast
from alice_nnunet.pretrain.training.state import State


@torch.no_grad()
def matched_crops_found(state: State, batches: Iterable[PairBatch], precision: str) -> float:
    """Share of aligned pairs whose two crops find each other among all crops of the other side.

    Chance is 1 / pairs. A crop is described by the mean of the online encoder's last features over
    its tokens.

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
    for batch in batches:
        queries.append(described(batch.query))
        keys.append(described(batch.key))
    return share_found(torch.cat(queries), torch.cat(keys))


def share_found(queries: Tensor, keys: Tensor) -> float:
    """Share of rows whose most similar row on the other side, of all, is their own.

    Both directions are averaged. queries, keys: (P, E), rows of the same number belong together.
    """
    similarity = centered(queries) @ centered(keys).T
    own = torch.arange(len(queries), device=queries.device)

    by_query = (similarity.argmax(1) == own).float().mean().item()
    by_key = (similarity.T.argmax(1) == own).float().mean().item()
    return (by_query + by_key) / 2


def centered(features: Tensor) -> Tensor:
    """Directions from the mean of all rows, of length 1: the mean tells nothing about any crop."""
    return F.normalize(features - features.mean(0), dim=1)
