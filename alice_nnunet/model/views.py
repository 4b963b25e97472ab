"""The four views of a pair of crops (Alice, Secs. 3 and 4.2): masked for the online branch,
augmented for the target.

Shapes: B crops, C channels, D H W voxels in (z, y, x) order, N tokens, V visible tokens.

All random numbers are drawn here, from the generator that is passed in. What was drawn is then
applied to the whole batch on the crops' device.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from alice_nnunet.data.rotation import rotation_matrices
from alice_nnunet.geometry import Spacing, Triple, grid_of
from alice_nnunet.model.method import Method
from alice_nnunet.model.tokens import masked_from, random_keep

LARGEST_ANGLES = (30.0, 15.0, 15.0)  # degrees about z, y, x
SCALE_RANGE = (0.8, 1.25)  # size of the anatomy in the view over its size in the crop
INTENSITY_SCALE = 0.1  # factor 1 +- 0.1
INTENSITY_SHIFT = 0.1  # in units of the window


@dataclass
class Views:
    """One crop of each pair, Q or K, as the two branches see it."""

    online: Tensor  # (B, C, D, H, W): u of Q or r of K; the branch sees only the tokens in keep
    keep: Tensor  # (B, V) indices of the visible tokens
    masked: Tensor  # (B, N), True where hidden: the complement of keep
    # (B, C, D, H, W): w of Q or v of K, strongly augmented, intact; None if no term needs it
    target: Tensor | None
    target_keep: Tensor | None  # (B, V') indices that the target branch sees, None for all tokens

    def rows(self, part: slice) -> "Views":
        """The views of some of the crops."""
        return Views(
            online=self.online[part],
            keep=self.keep[part],
            masked=self.masked[part],
            target=None if self.target is None else self.target[part],
            target_keep=None if self.target_keep is None else self.target_keep[part],
        )


@dataclass
class Augmentation:
    """Drawn parameters of the strong augmentation, one row for each crop."""

    angles: Tensor  # (B, 3) radians about z, y, x
    scale: Tensor  # (B,)
    flips: Tensor  # (B, 3) -1 where the (z, y, x) axis is mirrored, else 1
    factor: Tensor  # (B,) intensity factor
    shift: Tensor  # (B,) intensity shift

    def rows(self, part: slice) -> "Augmentation":
        """The parameters for some of the crops."""
        return Augmentation(
            angles=self.angles[part],
            scale=self.scale[part],
            flips=self.flips[part],
            factor=self.factor[part],
            shift=self.shift[part],
        )


def draw_flips(batch: int, generator: torch.Generator) -> Tensor:
    """Draw -1 or 1 with even odds, (B, 3)."""
    return torch.randint(0, 2, (batch, 3), generator=generator, device=generator.device) * 2.0 - 1


def draw_augmentation(batch: int, generator: torch.Generator) -> Augmentation:
    """Draw random resized rotation, flips, intensity scale and shift (Alice, Sec. 4.2)."""
    device = generator.device
    uniform = torch.rand(batch, 6, generator=generator, device=device) * 2 - 1  # in [-1, 1)

    largest_angles = torch.tensor(LARGEST_ANGLES, device=device).deg2rad()
    low, high = (math.log(scale) for scale in SCALE_RANGE)

    return Augmentation(
        angles=uniform[:, :3] * largest_angles,
        scale=(low + (high - low) * (uniform[:, 3] + 1) / 2).exp(),
        flips=draw_flips(batch, generator),
        factor=1 + INTENSITY_SCALE * uniform[:, 4],
        shift=INTENSITY_SHIFT * uniform[:, 5],
    )


def augment(crops: Tensor, drawn: Augmentation, spacing: Spacing) -> Tensor:
    """Apply the drawn augmentation. The rotation is in mm, so its angles are true angles.

    Args:
        crops: (B, C, D, H, W).
        drawn: one row for each crop.
        spacing: mm (z, y, x).

    Returns:
        (B, C, D, H, W). Where the view reaches beyond the crop it is 0, the window's floor.
    """
    extent = [voxels * mm for voxels, mm in zip(crops.shape[2:], spacing)]  # mm (z, y, x)
    size = torch.tensor(extent[::-1], device=crops.device)  # mm (x, y, z)

    # From output to input coordinates: first in mm, then in half sizes of the crop.
    matrix = (
        rotation_matrices(drawn.angles)
        * drawn.flips.flip(1)[:, None, :]
        / drawn.scale[:, None, None]
    )
    matrix = matrix * size[None, None, :] / size[None, :, None]

    affine = F.pad(matrix, (0, 1))  # no translation
    grid = F.affine_grid(affine, list(crops.shape), align_corners=False).to(crops.dtype)
    moved = F.grid_sample(crops, grid, mode="bilinear", padding_mode="zeros", align_corners=False)

    factor = drawn.factor.to(crops.dtype).view(-1, 1, 1, 1, 1)
    shift = drawn.shift.to(crops.dtype).view(-1, 1, 1, 1, 1)
    return moved * factor + shift


def flip(crops: Tensor, flips: Tensor) -> Tensor:
    """Mirror each crop along the axes where `flips`, (B, 3), is -1."""
    for axis in range(3):
        mirrored = (flips[:, axis] < 0).view(-1, 1, 1, 1, 1)
        crops = torch.where(mirrored, crops.flip(axis + 2), crops)
    return crops


def make_views(
    crops: Tensor,
    unit: Triple,
    spacing: Spacing,
    method: Method,
    generator: torch.Generator,
    rank: int = 0,
    world: int = 1,
) -> Views:
    """Make the views u, w of Q or r, v of K.

    The crops may be one of several equal parts of a batch. Numbers are drawn for the whole batch,
    so a crop's views do not depend on how the batch is divided.

    Args:
        crops: (B, C, D, H, W) on the generator's device.
        unit: voxels hidden or shown together (z, y, x).
        spacing: mm (z, y, x).
        method: says what to hide and whether to flip.
        generator: source of all random numbers.
        rank: number of this part of the batch.
        world: number of parts.
    """
    batch = len(crops) * world
    tokens = math.prod(grid_of(crops.shape[2:], unit))
    own = slice(len(crops) * rank, len(crops) * (rank + 1))

    # Online branch. Each draw takes numbers from the generator, so their order matters.
    online = flip(crops, draw_flips(batch, generator)[own]) if method.online_flips else crops
    keep = random_keep(batch, tokens, method.mask_ratio, generator)[own]

    # Target branch
    augmentation = draw_augmentation(batch, generator).rows(own)
    target = augment(crops, augmentation, spacing) if method.compares else None
    target_keep = None
    if method.target_mask_ratio:
        target_keep = random_keep(batch, tokens, method.target_mask_ratio, generator)[own]

    return Views(online, keep, masked_from(keep, tokens), target, target_keep)
