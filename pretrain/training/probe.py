"""Is what the encoder learns about anatomy? A probe without labels: does a crop find the same body part in another person?"""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from alice_nnunet.model.alice import Alice
from alice_nnunet.pretrain.training.step import autocast


@torch.no_grad()
def matched_crops_found(model: Alice, batches: Iterable[dict], precision: str) -> float:
    """Share of aligned pairs whose two crops find each other among all crops of the other side; chance is 1 / pairs.

    batches: aligned pairs, as in training. Crops are compared by what the online encoder makes of them whole: the mean of its
    last features, less their mean over all crops, which tells nothing about any of them.
    """
    model.eval()
    device, queries, keys = next(model.parameters()).device, [], []
    for batch in batches:
        for crops, found in ((batch["query"], queries), (batch["key"], keys)):
            with autocast(device, precision):
                found.append(
                    model.encoder.features(crops.to(device))[-1].float().mean((2, 3, 4))
                )  # (B, E)
    return share_found(torch.cat(queries), torch.cat(keys))


def share_found(queries: Tensor, keys: Tensor) -> float:
    """Share of rows whose most similar row on the other side, of all, is their own; both directions averaged. (P, E) each."""
    similarity = centered(queries) @ centered(keys).T
    own = torch.arange(len(queries), device=queries.device)
    return sum((s.argmax(1) == own).float().mean().item() for s in (similarity, similarity.T)) / 2


def centered(features: Tensor) -> Tensor:
    """Directions from the mean of all rows, of length 1."""
    return F.normalize(features - features.mean(0), dim=1)
