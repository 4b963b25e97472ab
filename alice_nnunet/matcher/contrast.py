"""How SAM learns: the same point in two patches is alike, other points are not (Yan et al., Sec. III).

B volumes, K points of each, C channels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

Vectors = tuple[Tensor, Tensor]  # fine and coarse, (B, K, C) each


def contrast(anchors: Tensor, positives: Tensor, negatives: Tensor, temperature: float) -> Tensor:
    """InfoNCE of each anchor against its positive and its negatives, mean over anchors; 0 without anchors.

    anchors, positives: (P, C). negatives: (P, M), similarities; -inf is left out of the softmax altogether.
    """
    if not len(anchors):
        return anchors.sum()
    logits = torch.cat([(anchors * positives).sum(1, keepdim=True), negatives], 1) / temperature
    return F.cross_entropy(logits, torch.zeros(len(anchors), dtype=torch.long, device=anchors.device))


def pick(alike: Tensor, allowed: Tensor, order: Tensor, number: int) -> Tensor:
    """Similarities of the first number allowed candidates of each anchor, those with the largest order. All (P, M).

    Returns (P, number), -inf where fewer are allowed.
    """
    picked = order.masked_fill(~allowed, -torch.inf).topk(min(number, order.shape[1]), dim=1).indices
    return alike.masked_fill(~allowed, -torch.inf).gather(1, picked)


def anatomy_losses(first: Vectors, second: Vectors, inside: Tensor, points: Tensor, ignore: tuple[float, float],
                   hardest: int, others: int, temperature: float, generator: torch.Generator) -> dict[str, Tensor]:
    """Loss of the fine and of the coarse vectors of the same points in two patches, both directions.

    inside: (B, K), whether both patches show the point. points: (B, K, 3) mm. ignore: mm around a point, fine and
    coarse, where another point is neither positive nor negative. Negatives of a vector are the hardest of its own volume;
    those of a coarse vector also others random ones of the other volumes, as in SAM. Never the hardest of those: the most
    similar place in another person may be the same place, and nobody knows.
    """
    batch = inside.nonzero()[:, 0]
    place = points[inside]                                                   # (P, 3), the points of all volumes
    same = batch[:, None] == batch[None]                                     # (P, P)
    apart = torch.cdist(place, place)
    losses = {"fine": 0.0, "coarse": 0.0}
    for here, there in ((first, second), (second, first)):
        (fine, coarse), (fine_other, coarse_other) = ([v[inside] for v in vectors] for vectors in (here, there))
        alike = {"fine": fine @ fine_other.T, "coarse": coarse @ coarse_other.T}
        hardness = (alike["fine"] + alike["coarse"]).detach()
        chance = torch.rand(same.shape, generator=generator, device=generator.device)
        negatives = [pick(alike[name], same & (apart > radius), hardness, hardest) for name, radius in zip(alike, ignore)]
        negatives[1] = torch.cat([negatives[1], pick(alike["coarse"], ~same, chance, others)], 1)
        losses["fine"] += contrast(fine, fine_other, negatives[0], temperature) / 2
        losses["coarse"] += contrast(coarse, coarse_other, negatives[1], temperature) / 2
    return losses
