"""The loss of SAM: the same point in two patches is similar, other points are not.

Yan et al., IEEE TMI 2022, Sec. III. B volumes, K points of each, C channels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

Vectors = tuple[Tensor, Tensor]  # fine and coarse, (B, K, C) each


def info_nce(
    anchors: Tensor,
    positives: Tensor,
    candidates: Tensor,
    allowed: Tensor,
    hardness: Tensor,
    hardest: int,
    temperature: float,
) -> Tensor:
    """InfoNCE of each anchor against its positive and its hardest negatives, mean over anchors.

    Args:
        anchors: (P, C).
        positives: (P, C).
        candidates: (M, C), for negatives.
        allowed: (P, M), False where a candidate is no negative of an anchor; it is then left out
            of the softmax.
        hardness: (P, M), by which the hardest negatives are chosen.
        hardest: negatives of each anchor.
        temperature: of the softmax.

    Returns:
        (); 0 without anchors.
    """
    if not len(anchors):
        return anchors.sum()

    allowed_hardness = hardness.masked_fill(~allowed, -torch.inf)
    chosen = allowed_hardness.topk(min(hardest, len(candidates)), dim=1).indices  # (P, hardest)
    similarity = (anchors @ candidates.T).masked_fill(~allowed, -torch.inf)
    negatives = similarity.gather(1, chosen)

    positive = (anchors * positives).sum(1, keepdim=True)
    logits = torch.cat([positive, negatives], 1) / temperature
    first = torch.zeros(len(anchors), dtype=torch.long, device=anchors.device)
    return F.cross_entropy(logits, first)


def contrastive_losses(
    first: Vectors,
    second: Vectors,
    inside: Tensor,
    points: Tensor,
    volume: Tensor,
    ignore: tuple[float, float],
    hardest: int,
    temperature: float,
) -> dict[str, Tensor]:
    """Loss of the fine and of the coarse vectors of the same points in two patches.

    Both directions are averaged. Negatives of a fine vector come from all patches of its own
    volume: the same place in another person is no negative, and nobody knows where it is. Negatives
    of a coarse vector come from all volumes of the batch, which tells body regions apart. SAM draws
    those in other volumes at random; here the hardest count wherever they are.

    Args:
        first: vectors of the points in the first patch.
        second: vectors of the points in the second patch.
        inside: (B, K), whether both patches show the point.
        points: (B, K, 3) mm in their volume.
        volume: (B,) int, which volume that is.
        ignore: mm around a point, for fine and coarse vectors, within which another point is
            neither positive nor negative.
        hardest: negatives of each point.
        temperature: of the softmax.

    Returns:
        "fine" and "coarse", () each.
    """
    # P points that both patches show, of all patches. Their number is asked of the device once.
    shown = inside.flatten().nonzero()[:, 0]
    owner = volume.repeat_interleave(inside.shape[1])[shown]
    place = points.flatten(0, 1)[shown]  # (P, 3)
    same_volume = owner[:, None] == owner[None]  # (P, P)
    distance = torch.cdist(place, place)
    allowed_fine = same_volume & (distance > ignore[0])
    allowed_coarse = ~same_volume | (distance > ignore[1])

    losses: dict[str, Tensor] = {}
    for anchor_vectors, other_vectors in ((first, second), (second, first)):
        fine, coarse = (v.flatten(0, 1)[shown] for v in anchor_vectors)
        fine_other, coarse_other = (v.flatten(0, 1)[shown] for v in other_vectors)
        with torch.no_grad():
            hardness = fine @ fine_other.T + coarse @ coarse_other.T

        of_fine = info_nce(
            fine, fine_other, fine_other, allowed_fine, hardness, hardest, temperature
        )
        of_coarse = info_nce(
            coarse, coarse_other, coarse_other, allowed_coarse, hardness, hardest, temperature
        )
        losses["fine"] = losses.get("fine", 0) + of_fine / 2
        losses["coarse"] = losses.get("coarse", 0) + of_coarse / 2
    return losses
