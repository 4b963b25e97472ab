"""Mask units of a crop as blocks of voxels or tokens: cut out, merged, surrounded by neighbours.

Blocks are (B, V, z, y, x, C), channels last. V counts the visible units of each crop, or V = 1 and
the block is the intact crop. Shapes: B crops, V blocks, C channels; sizes are (z, y, x).
"""

import itertools

import torch
from torch import Tensor

from alice_nnunet.geometry import Triple, grid_of
from alice_nnunet.model.tokens import patchify, take_tokens

# The 27 sides of a unit; (0, 0, 0) is the unit itself.
SIDES = tuple(itertools.product((-1, 0, 1), repeat=3))


def unit_corners(keep: Tensor, units: Triple) -> Tensor:
    """Positions of units in the grid of units.

    Args:
        keep: (B, V) indices, z slowest.
        units: size of the grid.

    Returns:
        (B, V, 3), on the CPU: what is computed from them decides sizes of tensors, and a GPU would
        have to be waited for.
    """
    keep = keep.cpu()
    _, y, x = units
    return torch.stack([keep // (y * x), keep // x % y, keep % x], -1)


def cut_blocks(crop: Tensor, keep: Tensor | None, unit: Triple) -> Tensor:
    """The voxels of the units in `keep`. Hidden voxels are left out before any arithmetic.

    Args:
        crop: (B, C, D, H, W).
        keep: (B, V) indices of units, or None for the whole crop as one block.
        unit: voxels of a unit.

    Returns:
        (B, V, *unit, C), or (B, 1, D, H, W, C) without keep.

    Raises:
        ValueError: the crop is not a multiple of `unit`.
    """
    grid_of(crop.shape[2:], unit)
    if keep is None:
        return crop.permute(0, 2, 3, 4, 1).unsqueeze(1)

    units = take_tokens(patchify(crop, unit), keep)  # (B, V, C * voxels)
    return units.view(*keep.shape, crop.shape[1], *unit).permute(0, 1, 3, 4, 5, 2)


def merge_blocks(blocks: Tensor, box: Triple) -> Tensor:
    """Cut blocks into boxes of tokens and gather the tokens of each box in the last axes.

    Args:
        blocks: (B, V, z, y, x, C).
        box: tokens of a box.

    Returns:
        (B, V, z / box, y / box, x / box, C, *box).
    """
    b, v, z, y, x, c = blocks.shape
    box_z, box_y, box_x = box
    cut = blocks.reshape(b, v, z // box_z, box_z, y // box_y, box_y, x // box_x, box_x, c)
    return cut.permute(0, 1, 2, 4, 6, 8, 3, 5, 7)


def volume_of(blocks: Tensor) -> Tensor:
    """An intact crop's block as a volume, (B, 1, D, H, W, C) -> (B, C, D, H, W)."""
    return blocks.squeeze(1).permute(0, 4, 1, 2, 3)


def block_of(volume: Tensor) -> Tensor:
    """A volume as an intact crop's block, (B, C, D, H, W) -> (B, 1, D, H, W, C)."""
    return volume.permute(0, 2, 3, 4, 1).unsqueeze(1)


def neighbours(corners: Tensor, units: Triple) -> Tensor:
    """The visible unit on each of the 27 sides of each unit.

    Args:
        corners: (B, V, 3) positions of the visible units in the grid of units.
        units: size of this grid.

    Returns:
        (27, B * V): number of the unit on this side among all B * V units. It is B * V where the
        neighbour is hidden or outside the crop.
    """
    b, v, _ = corners.shape
    device = corners.device

    # Number the units on a grid with a border of one unit.
    numbers = torch.full((b, *(length + 2 for length in units)), b * v, device=device)
    crop = torch.arange(b, device=device).unsqueeze(1)
    z, y, x = (corners + 1).unbind(-1)
    numbers[crop, z, y, x] = torch.arange(b * v, device=device).view(b, v)

    return torch.stack([numbers[crop, z + dz, y + dy, x + dx].flatten() for dz, dy, dx in SIDES])


def surround(blocks: Tensor, sides: Tensor, after: tuple[bool, bool, bool]) -> Tensor:
    """Blocks with one layer of their visible neighbours around them.

    The layer is before the block along every axis, and after it along some. What is hidden or
    outside the crop is zero.

    Args:
        blocks: (B, V, z, y, x, C).
        sides: see `neighbours`.
        after: whether there is a layer after the block, along (z, y, x).

    Returns:
        (B * V, z + 1 or 2, y + 1 or 2, x + 1 or 2, C).
    """
    units = blocks.flatten(0, 1)
    units = torch.cat([units, torch.zeros_like(units[:1])])  # (B * V + 1, z, y, x, C)
    steps_z, steps_y, steps_x = ((-1, 0, 1) if both else (-1, 0) for both in after)

    # Cut axis by axis, so that most gradients are of thin pieces.
    planes = []
    for z in steps_z:
        plane = facing_layer(units, 1, z)
        lines = []
        for y in steps_y:
            line = facing_layer(plane, 2, y)
            pieces = []
            for x in steps_x:
                piece = facing_layer(line, 3, x)
                if (z, y, x) == (0, 0, 0):
                    pieces.append(piece[:-1])
                else:
                    pieces.append(piece.index_select(0, sides[SIDES.index((z, y, x))]))
            lines.append(torch.cat(pieces, 3))
        planes.append(torch.cat(lines, 2))
    return torch.cat(planes, 1)


def facing_layer(units: Tensor, axis: int, side: int) -> Tensor:
    """What a unit shows to a neighbour that has it on this side along an axis.

    Its last layer for side -1, its first for side 1, all of it for side 0.
    """
    if side == 0:
        return units
    first = 0 if side > 0 else units.shape[axis] - 1
    return units.narrow(axis, first, 1)
