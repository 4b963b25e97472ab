"""How SAM learns: the same point in two patches is alike, other points are not (Yan et al., Sec. III).

B volumes, K points of each, C channels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

Vectors = tuple[Tensor, Tensor]  # fine and coarse, (B, K, C) each


def contrast(
    anchors: Tensor,
    positives: Tensor,
    others: Tensor,
    allowed: Tensor,
    hardness: Tensor,
    hardest: int,
    temperature: float,
) -> Tensor:
    """InfoNCE of each anchor against its positive and its hardest negatives, mean over anchors.

    anchors, positives: (P, C). others: (M, C), the candidates for negatives. allowed: (P, M), False where a candidate
    is no negative of an anchor: it is left out of the softmax altogether. hardness: (P, M), what is counted as hard.
    Without anchors it is 0.
    """
    if not len(anchors):
        return anchors.sum()
    picked = (
        hardness.masked_fill(~allowed, -torch.inf)
        .topk(min(hardest, others.shape[0]), dim=1)
        .indices
    )  # (P, hardest)
    negatives = (anchors @ others.T).masked_fill(~allowed, -torch.inf).gather(1, picked)
    logits = torch.cat([(anchors * positives).sum(1, keepdim=True), negatives], 1) / temperature
    return F.cross_entropy(
        logits, torch.zeros(len(anchors), dtype=torch.long, device=anchors.device)
    )


def anatomy_losses(
    first: Vectors,
    second: Vectors,
    inside: Tensor,
    points: Tensor,
    volume: Tensor,
    ignore: tuple[float, float],
    hardest: int,
    temperature: float,
) -> dict[str, Tensor]:
    """Loss of the fine and of the coarse vectors of the same points in two patches, both directions.

    inside: (B, K), whether both patches show the point. points: (B, K, 3) mm in their volume. volume: (B,) int, which one
    that is. ignore: mm around a point, fine and coarse, where another point is neither positive nor negative. Negatives
    of a fine vector come from its own volume, from all patches of it: the same place in another person is no negative, and
    nobody knows where that is. Those of a coarse vector come from all volumes of the batch: that is what tells one body
    region from another. SAM draws them at random in the others, here the hardest count wherever they are.
    """
    owner = volume[inside.nonzero()[:, 0]]
    place = points[inside]  # (P, 3), the points of all patches
    same = owner[:, None] == owner[None]  # (P, P)
    apart = torch.cdist(place, place)
    losses = {"fine": 0.0, "coarse": 0.0}
    for here, there in ((first, second), (second, first)):
        (fine, coarse), (fine_other, coarse_other) = (
            [v[inside] for v in vectors] for vectors in (here, there)
        )
        with torch.no_grad():
            hardness = fine @ fine_other.T + coarse @ coarse_other.T
        losses["fine"] += (
            contrast(
                fine,
                fine_other,
                fine_other,
                same & (apart > ignore[0]),
                hardness,
                hardest,
                temperature,
            )
            / 2
        )
        losses["coarse"] += (
            contrast(
                coarse,
                coarse_other,
                coarse_other,
                ~same | (apart > ignore[1]),
                hardness,
                hardest,
                temperature,
            )
            / 2
        )
    return losses
