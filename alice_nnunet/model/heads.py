"""Projection heads phi and psi (Alice, Sec. 3.2) and the predictor of the online side."""

import torch.nn.functional as F
from torch import Tensor, nn

from alice_nnunet.ranks import mean_over_ranks, together


class DinoHead(nn.Module):
    """Three-layer MLP, l2-normalised bottleneck, linear layer with rows of unit length (DINO).

    (B, N, width) -> (B, N, channels).
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
        return F.linear(
            F.normalize(self.mlp(tokens), dim=-1), F.normalize(self.last.weight, dim=-1)
        )


class BatchNorm(nn.BatchNorm1d):
    """Batch norm over the vectors of all processes that train together, (M, channels) -> (M, channels)."""

    def forward(self, vectors: Tensor) -> Tensor:
        if not (self.training and together()):
            return super().forward(vectors)
        vectors = vectors.float()
        centered = vectors - mean_over_ranks(vectors.mean(0))
        variance = mean_over_ranks(centered.square().mean(0))
        return centered * (variance + self.eps).rsqrt() * self.weight + self.bias


class BatchNormMLP(nn.Module):
    """BYOL's MLP: linear, batch norm over all vectors, ReLU, linear. (..., width) -> (..., channels).

    An option for the heads phi and psi. The statistics are always those of the batch: there is no running mean that one
    bad batch could spoil, and validation computes what training does.
    """

    def __init__(self, width: int, hidden: int, channels: int):
        super().__init__()
        self.enter, self.leave = nn.Linear(width, hidden), nn.Linear(hidden, channels)
        self.norm = BatchNorm(hidden, track_running_stats=False)

    def forward(self, features: Tensor) -> Tensor:
        hidden = self.enter(features)
        normed = self.norm(hidden.flatten(0, -2)).view_as(hidden)
        return self.leave(F.relu(normed))


class Predictor(nn.Module):
    """BYOL's predictor on the online side of Eqs. 2 and 5, (..., channels) -> (..., channels), with layer norm for batch norm.

    Early on all features are nearly alike. Batch norm magnifies what little differs, and as much its gradient: on the
    encoder it drowns that of l_r, and a swin encoder's tokens become one. Layer norm magnifies nothing between vectors.
    """

    def __init__(self, channels: int, hidden: int):
        super().__init__()
        self.enter, self.norm, self.leave = (
            nn.Linear(channels, hidden),
            nn.LayerNorm(hidden),
            nn.Linear(hidden, channels),
        )

    def forward(self, features: Tensor) -> Tensor:
        return self.leave(F.relu(self.norm(self.enter(features))))


def init_head(module: nn.Module) -> None:
    """Xavier uniform and zero biases. What torch does by default lets the biases drown the features of a narrow network,
    and what comes out of the heads is then the same for every token before the first step.
    """
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
