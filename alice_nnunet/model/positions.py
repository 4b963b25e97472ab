"""Position embeddings of tokens on a (z, y, x) grid."""

import torch
import torch.nn.functional as F
from torch import Tensor

from alice_nnunet.geometry import Triple


def sincos_positions(grid: Triple, width: int) -> Tensor:
    """Sine and cosine of each axis' token index, as in Vaswani et al. 2017, one third of the width for each axis.

    Returns (1, N, width); what width leaves over after three equal, even parts is zero.
    """
    per_axis = width // 6
    frequency = 10000.0 ** (-torch.arange(per_axis, dtype=torch.float64) / per_axis)
    indices = torch.meshgrid(*(torch.arange(g, dtype=torch.float64) for g in grid), indexing="ij")
    angles = [index.reshape(-1, 1) * frequency for index in indices]  # 3 x (N, width / 6)
    parts = torch.cat([part for angle in angles for part in (angle.sin(), angle.cos())], 1)
    return F.pad(parts, (0, width - parts.shape[1])).float().unsqueeze(0)


def resize_positions(positions: Tensor, grid: Triple, new_grid: Triple) -> Tensor:
    """Trilinear interpolation to another grid of tokens. (1, N, E) -> (1, M, E); unchanged if the grids are equal."""
    if tuple(grid) == tuple(new_grid):
        return positions
    volume = positions.transpose(1, 2).reshape(1, -1, *grid)
    return F.interpolate(volume, size=new_grid, mode="trilinear").flatten(2).transpose(1, 2)
