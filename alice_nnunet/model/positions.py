"""Position embeddings of tokens on a (z, y, x) grid."""

import math
from collections.abc import Sequence

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
    return sincos_at([torch.arange(length, dtype=torch.float64) for length in grid], width)


def sincos_at(axes: Sequence[Tensor], width: int) -> Tensor:
    """The same for tokens at any indices, which need not be whole, along (z, y, x)."""
    indices = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)
    return sincos_of(indices.flatten(0, -2), width).float().unsqueeze(0)


def sincos_of(places: Tensor, width: int) -> Tensor:
    """The same for tokens at any places, (..., 3) indices along (z, y, x) -> (..., width)."""
    per_axis = width // 6
    steps = torch.arange(per_axis, dtype=torch.float64, device=places.device)
    frequency = (10000.0 ** (-steps / per_axis)).to(places.dtype)

    parts = []
    for index in places.unbind(-1):
        angle = index[..., None] * frequency  # (..., per_axis)
        parts += [angle.sin(), angle.cos()]
    positions = torch.cat(parts, -1)
    return F.pad(positions, (0, width - positions.shape[-1]))


def move_positions(
    positions: Tensor, grid: Triple, new_grid: Triple, pitch: Sequence[float] = (1, 1, 1)
) -> Tensor:
    """Position embeddings for another grid, whose tokens keep their distance in mm.

    Both grids have the same middle, to a token. Of a larger table the middle part is taken. Beyond
    a smaller one, the sines and cosines that embeddings start from go on, and what was learned on
    top of them stays as it is at the border.

    Args:
        positions: (1, N, E), learned from `sincos_positions`.
        grid: the N tokens along (z, y, x).
        new_grid: the M tokens wanted.
        pitch: mm between the new tokens over mm between the old ones (z, y, x).

    Returns:
        (1, M, E).
    """
    if grid == new_grid and tuple(pitch) == (1, 1, 1):
        return positions

    width = positions.shape[-1]
    axes = []
    for old, new, step in zip(grid, new_grid, pitch):
        start = (old - 1 - (new - 1) * step) / 2
        if step == 1:
            start = math.floor(start)  # on the old tokens, not between them
        axes.append(start + step * torch.arange(new, dtype=torch.float64))

    # grid_sample counts from -1 at the first token to 1 at the last, along (x, y, z).
    middles = [(old - 1) / 2 for old in grid]
    along = [(axis - m) / max(m, 0.5) for axis, m in zip(axes, middles)]
    z, y, x = torch.meshgrid(*along, indexing="ij")
    places = torch.stack([x, y, z], -1).float()[None]

    learned = positions.float() - sincos_positions(grid, width)
    volume = learned.transpose(1, 2).reshape(1, width, *grid)
    read = F.grid_sample(volume, places, padding_mode="border", align_corners=True)
    return read.flatten(2).transpose(1, 2) + sincos_at(axes, width)


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
