"""Tokens of a crop: which are visible, and how voxels become tokens and back.

B batch, C channels, D H W voxels in nnU-Net's (z, y, x) order, N tokens, V visible tokens, E width of a token.
keep: (B, V) indices of the visible tokens. masked: (B, N) bool, True where a token is hidden.
"""

import torch
from torch import Tensor

from alice_nnunet.geometry import Triple, grid_of


def random_keep(batch: int, tokens: int, mask_ratio: float, generator: torch.Generator) -> Tensor:
    """Random visible tokens of each crop (Alice, Sec. 3: the views u and r; as in MAE).

    mask_ratio: share of hidden tokens, 0 <= mask_ratio < 1. generator: its device is the device of the result.
    Returns (batch, V), V = round(tokens * (1 - mask_ratio)), at least 1, each row without repetition.
    """
    if not 0 <= mask_ratio < 1:
        raise ValueError(f"mask_ratio must be in [0, 1), got {mask_ratio}")
    visible = max(1, round(tokens * (1 - mask_ratio)))
    noise = torch.rand(batch, tokens, generator=generator, device=generator.device)
    return noise.argsort(1)[:, :visible]


def masked_from(keep: Tensor, tokens: int) -> Tensor:
    """(B, V) indices -> (B, N) bool, True where hidden."""
    masked = torch.ones(len(keep), tokens, dtype=torch.bool, device=keep.device)
    return masked.scatter(1, keep, False)


def take_tokens(tokens: Tensor, keep: Tensor) -> Tensor:
    """(B, N, E), (B, V) -> (B, V, E)."""
    return tokens.gather(1, keep.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))


def put_tokens(visible: Tensor, keep: Tensor, background: Tensor) -> Tensor:
    """Visible tokens at their places, background elsewhere. (B, V, E), (B, V), (B, N, E) -> (B, N, E)."""
    return background.scatter(1, keep.unsqueeze(-1).expand_as(visible), visible)


def patchify(crop: Tensor, unit: Triple) -> Tensor:
    """Cut a crop into tokens of unit voxels, z slowest.

    crop: (B, C, D, H, W). Returns (B, N, C * unit voxels); inside a token the order is (C, z, y, x).
    """
    (b, c), (gz, gy, gx), (z, y, x) = crop.shape[:2], grid_of(crop.shape[2:], unit), unit
    blocks = crop.reshape(b, c, gz, z, gy, y, gx, x)
    return blocks.permute(0, 2, 4, 6, 1, 3, 5, 7).reshape(b, gz * gy * gx, c * z * y * x)


def unpatchify(tokens: Tensor, grid: Triple, unit: Triple) -> Tensor:
    """The inverse of patchify. tokens: (B, N, C * unit voxels) -> (B, C, D, H, W)."""
    b, (gz, gy, gx), (z, y, x) = len(tokens), grid, unit
    blocks = tokens.reshape(b, gz, gy, gx, -1, z, y, x).permute(0, 4, 1, 5, 2, 6, 3, 7)
    return blocks.reshape(b, -1, gz * z, gy * y, gx * x)
