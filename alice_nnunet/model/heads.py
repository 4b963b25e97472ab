"""Projection heads phi and psi (Alice, Sec. 3.2) and the predictor of the online side."""

import itertools
from collections.abc import Iterable, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from alice_nnunet.model.initialisation import xavier_uniform
from alice_nnunet.ranks import mean_over_ranks, together


class DinoHead(nn.Module):
    """DINO's head, (B, N, width) -> (B, N, channels).

    Three-layer MLP, l2-normalised bottleneck, linear layer whose rows have unit length.
    """

    def __init__(self, width: int, hidden: int, bottleneck: int, channels: int):
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(width, hidden),
            nn.GELU(),
            nn.Linear(hidden, hidden),
            nn.GELU(),
            nn.Linear(hidden, bottleneck),
        )
        self.last = nn.Linear(bottleneck, channels, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.prototypes(self.mlp(tokens))

    def prototypes(self, bottleneck: Tensor) -> Tensor:
        """The last layer alone, (..., bottleneck) -> (..., channels)."""
        directions = F.normalize(bottleneck, dim=-1)
        return F.linear(directions, F.normalize(self.last.weight, dim=-1))


def prototypes_at_rest(head: DinoHead, progress: float, share: float) -> Iterable[nn.Parameter]:
    """The last layer of a head, in the first share of a run (DINO and iBOT, authors' code).

    Args:
        head: the student's.
        progress: share of the run's steps that are done.
        share: of the run in which the layer stays as it was drawn.
    """
    return head.last.parameters() if progress < share else ()


class BatchNorm(nn.BatchNorm1d):
    """Batch norm over all vectors of all processes that train together, (..., C) -> (..., C)."""

    def forward(self, features: Tensor) -> Tensor:
        vectors = features.flatten(0, -2)  # (M, C)
        if not (self.training and together()):
            return super().forward(vectors).view_as(features)

        vectors = vectors.float()
        centered = vectors - mean_over_ranks(vectors.mean(0))
        variance = mean_over_ranks(centered.square().mean(0))
        normed = centered * (variance + self.eps).rsqrt()
        if self.affine:
            normed = normed * self.weight + self.bias
        return normed.view_as(features)


def normed_mlp(sizes: Sequence[int], norm_last: bool) -> nn.Sequential:
    """Linear layers with batch norm and ReLU between them, (M, sizes[0]) -> (M, sizes[-1]).

    Args:
        sizes: widths, of the input and of each layer.
        norm_last: whether batch norm without weights follows the last layer (SimCLR, MoCo v3).
            Else it has a bias.
    """
    layers: list[nn.Module] = []
    for width, following in itertools.pairwise(sizes[:-1]):
        layers += [
            nn.Linear(width, following, bias=False),
            BatchNorm(following, track_running_stats=False),
            nn.ReLU(),
        ]
    layers.append(nn.Linear(sizes[-2], sizes[-1], bias=not norm_last))
    if norm_last:
        layers.append(BatchNorm(sizes[-1], affine=False, track_running_stats=False))
    return nn.Sequential(*layers).apply(xavier_uniform)


class BatchNormMLP(nn.Module):
    """BYOL's MLP, an option for phi and psi, (..., width) -> (..., channels).

    Linear, batch norm over all vectors, ReLU, linear. The statistics are always those of the
    batch: no running mean can be spoilt by one bad batch, and validation computes what training
    does.
    """

    def __init__(self, width: int, hidden: int, channels: int):
        super().__init__()
        self.enter = nn.Linear(width, hidden)
        self.leave = nn.Linear(hidden, channels)
        self.norm = BatchNorm(hidden, track_running_stats=False)

    def forward(self, features: Tensor) -> Tensor:
        return self.leave(F.relu(self.norm(self.enter(features))))


class AnatomyHead(nn.Sequential):
    """What a token of the encoder says of its place in the matcher's terms.

    (..., width) -> (..., channels).
    """

    def __init__(self, width: int, channels: int):
        super().__init__(nn.Linear(width, width), nn.GELU(), nn.Linear(width, channels))


class Predictor(nn.Module):
    """BYOL's predictor for the online side of Eqs. 2 and 5, (..., channels) -> (..., channels).

    It has layer norm instead of BYOL's batch norm. Early in a run all features are nearly alike.
    Batch norm magnifies the small differences and their gradient, which then drowns that of l_r in
    the encoder: all tokens of a swin encoder become one. Layer norm looks at one vector at a time
    and magnifies nothing between vectors.
    """

    def __init__(self, channels: int, hidden: int):
        super().__init__()
        self.enter = nn.Linear(channels, hidden)
        self.norm = nn.LayerNorm(hidden)
        self.leave = nn.Linear(hidden, channels)

    def forward(self, features: Tensor) -> Tensor:
        return self.leave(F.relu(self.norm(self.enter(features))))
