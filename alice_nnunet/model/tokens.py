"""Tokens of a crop: which are visible, and how voxels become tokens and back.

Shapes: B crops, C channels, D H W voxels in (z, y, x) order, N tokens, V visible tokens, E width.

`keep` is (B, V): indices of the visible tokens.
`masked` is (B, N) bool: True where a token is hidden.
"""

import math

import torch
from torch import Tensor

from alice_nnunet.geometry import Triple, grid_of


def random_keep(batch: int, tokens: int, mask_ratio: float, generator: torch.Generator) -> Tensor:
    """Draw the visible tokens of each crop (Alice, Sec. 3: the views u and r; as in MAE).

    Args:
        batch: number of crops B.
        tokens: number of tokens N of a crop.
        mask_ratio: share of hidden tokens, in [0, 1).
        generator: its device is the device of the result.

    Returns:
        (B, V) with V = round(N * (1 - mask_ratio)), at least 1. No row repeats an index.
    """
    if not 0 <= mask_ratio < 1:
        raise ValueError(f"mask_ratio must be in [0, 1), got {mask_ratio}")

    visible = max(1, round(tokens * (1 - mask_ratio)))
    noise = torch.rand(batch, tokens, generator=generator, device=generator.device)
    return noise.argsort(1)[:, :visible]


def random_keep_blocks(
    batch: int, grid: Triple, block: Triple, mask_ratio: float, generator: torch.Generator
) -> Tensor:
    """Draw the visible tokens of each crop in blocks, which are hidden or shown as a whole.

    Args:
        batch: number of crops B.
        grid: tokens of a crop along (z, y, x).
        block: tokens of a block along (z, y, x). With one token it is `random_keep`.
        mask_ratio: share of hidden blocks, in [0, 1).
        generator: its device is the device of the result.

    Returns:
        (B, V) indices of tokens, z slowest. No row repeats one.

    Raises:
        ValueError: the grid is not a whole number of blocks.
    """
    if any(tokens % edge for tokens, edge in zip(grid, block)):
        raise ValueError(f"{grid} tokens of a crop (z, y, x) are no whole number of blocks {block}")

    numbers = torch.arange(math.prod(grid), device=generator.device).view(1, 1, *grid)
    tokens_of_block = patchify(numbers, block)[0]  # (blocks, tokens of a block)
    shown = random_keep(batch, len(tokens_of_block), mask_ratio, generator)
    return tokens_of_block[shown].flatten(1)


def masked_from(keep: Tensor, tokens: int) -> Tensor:
    """Mask that is True where a token is hidden, (B, V) indices -> (B, N) bool."""
    masked = torch.ones(len(keep), tokens, dtype=torch.bool, device=keep.device)
    return masked.scatter(1, keep, False)


def take_tokens(tokens: Tensor, keep: Tensor) -> Tensor:
    """Take the tokens listed in `keep`, (B, N, E) and (B, V) -> (B, V, E)."""
    keep = keep.to(tokens.device, non_blocking=True)
    return tokens.gather(1, keep.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))


def put_tokens(visible: Tensor, keep: Tensor, background: Tensor) -> Tensor:
    """Put visible tokens in their places, and `background` everywhere else.

    Args:
        visible: (B, V, E).
        keep: (B, V).
        background: (B, N, E).

    Returns:
        (B, N, E).
    """
    keep = keep.to(background.device, non_blocking=True)
    return background.scatter(1, keep.unsqueeze(-1).expand_as(visible), visible)


def patchify(crop: Tensor, unit: Triple) -> Tensor:
    """Cut a crop into tokens of `unit` voxels, z slowest.

    Args:
        crop: (B, C, D, H, W).
        unit: voxels of a token (z, y, x).

    Returns:
        (B, N, C * unit voxels). Inside a token the order is (C, z, y, x).
    """
    b, c = crop.shape[:2]
    z, y, x = unit
    grid_z, grid_y, grid_x = grid_of(crop.shape[2:], unit)

    blocks = crop.reshape(b, c, grid_z, z, grid_y, y, grid_x, x)
    blocks = blocks.permute(0, 2, 4, 6, 1, 3, 5, 7)  # (B, grid, C, unit)
    return blocks.reshape(b, grid_z * grid_y * grid_x, c * z * y * x)


def unpatchify(tokens: Tensor, grid: Triple, unit: Triple) -> Tensor:
    """The inverse of patchify.

    Args:
        tokens: (B, N, C * unit voxels).
        grid: tokens along (z, y, x).
        unit: voxels of a token (z, y, x).

    Returns:
        (B, C, D, H, W).
    """
    b = len(tokens)
    z, y, x = unit
    grid_z, grid_y, grid_x = grid

    blocks = tokens.reshape(b, grid_z, grid_y, grid_x, -1, z, y, x)
    blocks = blocks.permute(0, 4, 1, 5, 2, 6, 3, 7)  # (B, C, grid_z, z, grid_y, y, grid_x, x)
    return blocks.reshape(b, -1, grid_z * z, grid_y * y, grid_x * x)


def hide(crop: Tensor, masked: Tensor, token: Tensor, unit: Triple) -> Tensor:
    """Put one token of voxels wherever a crop is hidden.

    Every encoder can be given the result: what is hidden has a place, but no content.

    Args:
        crop: (B, C, D, H, W).
        masked: (B, N), True where a token is hidden.
        token: (C * unit voxels,).
        unit: voxels of a token (z, y, x).

    Returns:
        (B, C, D, H, W).
    """
    tokens = torch.where(masked[..., None], token.to(crop.dtype), patchify(crop, unit))
    return unpatchify(tokens, grid_of(crop.shape[2:], unit), unit)
