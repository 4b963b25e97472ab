"""Mask units of a crop as blocks of voxels or tokens: cut out, merged, and with their visible neighbours around them.

Blocks are (B, V, z, y, x, C), channels last: V visible units of each crop, or V = 1 and the one block is the intact crop.
B batch, V blocks, C channels; sizes are (z, y, x).
"""

import itertools

import torch
from torch import Tensor

from alice_nnunet.geometry import Triple, grid_of
from alice_nnunet.model.tokens import patchify, take_tokens

SIDES = tuple(
    itertools.product((-1, 0, 1), repeat=3)
)  # the 27 sides of a unit, (0, 0, 0) is itself


def unit_corners(keep: Tensor, units: Triple) -> Tensor:
    """Where units are in the grid of units. keep: (B, V), indices with z slowest. Returns (B, V, 3)."""
    _, y, x = units
    return torch.stack([keep // (y * x), keep // x % y, keep % x], -1)


def cut_blocks(crop: Tensor, keep: Tensor | None, unit: Triple) -> Tensor:
    """The voxels of the units in keep, or of the whole crop as one block. Hidden voxels are left out before any arithmetic.

    crop: (B, C, D, H, W). Returns (B, V, *unit, C), or (B, 1, D, H, W, C) without keep. Raises ValueError where the crop
    is no multiple of unit.
    """
    grid_of(crop.shape[2:], unit)
    if keep is None:
        return crop.permute(0, 2, 3, 4, 1).unsqueeze(1)
    units = take_tokens(patchify(crop, unit), keep)  # (B, V, C * voxels)
    return units.view(*keep.shape, crop.shape[1], *unit).permute(0, 1, 3, 4, 5, 2)


def merge_blocks(blocks: Tensor, unit: Triple) -> Tensor:
    """Cut blocks into little boxes of unit tokens and put the channels of each behind one another.

    (B, V, z, y, x, C) -> (B, V, z / unit, y / unit, x / unit, C, *unit).
    """
    b, v, z, y, x, c = blocks.shape
    cut = blocks.reshape(
        b, v, z // unit[0], unit[0], y // unit[1], unit[1], x // unit[2], unit[2], c
    )
    return cut.permute(0, 1, 2, 4, 6, 8, 3, 5, 7)


def volume_of(blocks: Tensor) -> Tensor:
    """(B, 1, D, H, W, C) -> (B, C, D, H, W)."""
    return blocks.squeeze(1).permute(0, 4, 1, 2, 3)


def neighbours(corners: Tensor, units: Triple) -> Tensor:
    """The visible unit on each of the 27 sides of a unit, itself in the middle.

    corners: (B, V, 3). Returns (27, B * V): which of the B * V units it is, or B * V where it is hidden or outside.
    """
    b, v, _ = corners.shape
    numbers = torch.full((b, *(u + 2 for u in units)), b * v, device=corners.device)
    crop = torch.arange(b, device=corners.device).unsqueeze(1)
    z, y, x = (corners + 1).unbind(-1)
    numbers[crop, z, y, x] = torch.arange(b * v, device=corners.device).view(b, v)
    return torch.stack([numbers[crop, z + dz, y + dy, x + dx].flatten() for dz, dy, dx in SIDES])


def surround(blocks: Tensor, sides: Tensor, after: tuple[bool, bool, bool]) -> Tensor:
    """Blocks with one layer of their visible neighbours before them, and after them along the axes where after is True.

    What is hidden or outside the crop is zero. blocks: (B, V, z, y, x, C). sides: of neighbours().
    Returns (B * V, z + 1 or 2, y + 1 or 2, x + 1 or 2, C).
    """
    units = blocks.flatten(0, 1)
    units = torch.cat([units, torch.zeros_like(units[:1])])  # (B * V + 1, z, y, x, C)
    steps = [(-1, 0, 1) if both else (-1, 0) for both in after]

    def cut(piece: Tensor, axis: int, side: int) -> Tensor:
        return (
            piece if side == 0 else piece.narrow(axis, 0 if side > 0 else piece.shape[axis] - 1, 1)
        )

    planes = []  # cut axis by axis, so that most gradients are of thin pieces
    for z in steps[0]:
        plane, lines = cut(units, 1, z), []
        for y in steps[1]:
            line, pieces = cut(plane, 2, y), []
            for x in steps[2]:
                piece = cut(line, 3, x)
                pieces.append(
                    piece[:-1]
                    if (z, y, x) == (0, 0, 0)
                    else piece.index_select(0, sides[SIDES.index((z, y, x))])
                )
            lines.append(torch.cat(pieces, 3))
        planes.append(torch.cat(lines, 2))
    return torch.cat(planes, 1)
