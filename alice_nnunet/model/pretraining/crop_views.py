"""Views that several methods of pretraining draw of crops.

Shapes: B crops, C channels, D H W voxels in (z, y, x) order, N tokens of a crop.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from alice_nnunet.geometry import Triple, triple
from alice_nnunet.model.pretraining.method import Drawing
from alice_nnunet.model.tokens import masked_from, random_keep_blocks
from alice_nnunet.model.views import (
    AXES,
    CropViews,
    augment,
    draw_augmentation,
    view_to_crop,
)


@dataclass
class TwoViews(CropViews):
    """Two strongly augmented views of each crop."""

    first: Tensor  # (B, C, D, H, W)
    second: Tensor  # (B, C, D, H, W)


@dataclass
class MaskedCrops(CropViews):
    """Crops of which the encoder sees the tokens in keep."""

    crop: Tensor  # (B, C, D, H, W)
    keep: Tensor  # (B, V) indices of the visible tokens, on the generator's device
    masked: Tensor  # (B, N), True where hidden


def strong_view(crops: Tensor, drawing: Drawing, flips: bool) -> tuple[Tensor, Tensor]:
    """A view as the target branch of Alice has it: rotated, scaled, with other intensities.

    Args:
        crops: (B, C, D, H, W).
        drawing: source of random numbers.
        flips: whether it may also be mirrored along each axis.

    Returns:
        The view, (B, C, D, H, W), and (B, 3, 3) from its coordinates to those of the crop, see
        views.at_places.
    """
    own = drawing.own(len(crops))
    axes = AXES if flips else ""
    drawn = draw_augmentation(drawing.whole(len(crops)), drawing.generator, axes).rows(own)
    view = augment(crops, drawn, drawing.spacing, drawing.windowed)
    return view, view_to_crop(drawn, triple(crops.shape[2:]), drawing.spacing)


def two_views(crops: Tensor, drawing: Drawing, flips: bool) -> TwoViews:
    """Two views of each crop, see strong_view."""
    first, _ = strong_view(crops, drawing, flips)
    second, _ = strong_view(crops, drawing, flips)
    return TwoViews(first, second)


def hidden_tokens(
    crops: Tensor, drawing: Drawing, grid: Triple, ratio: float, block: Triple = (1, 1, 1)
) -> tuple[Tensor, Tensor]:
    """Hide a random share of the tokens of each crop, in blocks.

    Args:
        crops: (B, C, D, H, W).
        drawing: source of random numbers.
        grid: tokens along (z, y, x).
        ratio: hidden share.
        block: tokens that are hidden together, along (z, y, x).

    Returns:
        keep: (B, V) indices of the visible tokens, on the generator's device.
        masked: (B, N), True where hidden, on the crops' device.
    """
    tokens = math.prod(grid)
    keep = random_keep_blocks(drawing.whole(len(crops)), grid, block, ratio, drawing.generator)
    keep = keep[drawing.own(len(crops))]
    return keep, masked_from(keep, tokens).to(crops.device, non_blocking=True)


def tokens_of_ratio(crops: Tensor, drawing: Drawing, grid: Triple, ratios: Tensor) -> Tensor:
    """Hide a share of its own of each crop, at random places.

    Args:
        crops: (B, C, D, H, W).
        drawing: source of random numbers.
        grid: tokens along (z, y, x).
        ratios: hidden share of each crop of the whole batch.

    Returns:
        (B, N), True where hidden, on the crops' device.
    """
    tokens = math.prod(grid)
    generator = drawing.generator
    noise = torch.rand(len(ratios), tokens, generator=generator, device=generator.device)
    place = noise.argsort(1).argsort(1)  # of each token in a random order
    masked = place < (ratios * tokens).round()[:, None]
    return masked[drawing.own(len(crops))].to(crops.device, non_blocking=True)
