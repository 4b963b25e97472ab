"""Position embeddings of tokens on a (z, y, x) grid."""

import torch
import torch.nn.functional as F
from torch import Tensor

from alice_nnunet.geometry import Triple


def sincos_positions(grid: Triple, width: int) -> Tensor:
    """Sine and cosine of each axis' token index (Vaswani et al. 2017), a third of the width each.

    Args:
        grid: tokens along (z, y, x).
        width: values of one embedding. What is left over after three equal, even parts is zero.

    Returns:
        (1, N, width), N tokens with z slowest.
    """
    per_axis = width // 6
    frequency = 10000.0 ** (-torch.arange(per_axis, dtype=torch.float64) / per_axis)
    axes = [torch.arange(length, dtype=torch.float64) for length in grid]
    indices = torch.meshgrid(*axes, indexing="ij")

    parts = []
    for index in indices:
        angle = index.reshape(-1, 1) * frequency  # (N, per_axis)
        parts += [angle.sin(), angle.cos()]
    positions = torch.cat(parts, 1)

    return F.pad(positions, (0, width - positions.shape[1])).float().unsqueeze(0)


def resize_positions(positions: Tensor, grid: Triple, new_grid: Triple) -> Tensor:
    """Interpolate position embeddings to another grid of tokens (trilinear).

    Args:
        positions: (1, N, E).
        grid: the N tokens along (z, y, x).
        new_grid: the M tokens wanted.

    Returns:
        (1, M, E); `positions` itself if the grids are equal.
    """
    if tuple(grid) == tuple(new_grid):
        return positions

    volume = positions.transpose(1, 2).reshape(1, -1, *grid)
    resized = F.interpolate(volume, size=new_grid, mode="trilinear")
    return resized.flatten(2).transpose(1, 2)
