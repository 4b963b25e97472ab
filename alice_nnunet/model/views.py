"""The four views of a pair of crops (Alice, Sec. 3 and 4.2): masked ones for the online branch, augmented ones for the target.

B batch, C channels, D H W voxels in nnU-Net's (z, y, x) order. Random numbers are drawn in one place from the generator
that is passed in; what was drawn is then applied to the whole batch on the crops' device.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from alice_nnunet.geometry import Triple, grid_of
from alice_nnunet.model.alice import Views
from alice_nnunet.model.method import Method
from alice_nnunet.model.tokens import masked_from, random_keep

ANGLES = (30.0, 15.0, 15.0)  # largest rotation about z, y, x in degrees
SCALES = (0.8, 1.25)  # size of the anatomy in the view over its size in the crop
INTENSITY_SCALE = 0.1  # factor 1 +- 0.1
INTENSITY_SHIFT = 0.1  # in units of the window


@dataclass
class Augmentation:
    """Drawn parameters of the strong augmentation, one row for each crop."""

    angles: Tensor  # (B, 3) radians about z, y, x
    scale: Tensor  # (B,)
    flips: Tensor  # (B, 3) -1 where the (z, y, x) axis is mirrored, else 1
    factor: Tensor  # (B,) intensity factor
    shift: Tensor  # (B,) intensity shift

    def rows(self, part: slice) -> "Augmentation":
        """Those of some of the crops."""
        return Augmentation(
            self.angles[part],
            self.scale[part],
            self.flips[part],
            self.factor[part],
            self.shift[part],
        )


def draw_flips(batch: int, generator: torch.Generator) -> Tensor:
    """(B, 3), -1 or 1 with even odds."""
    return torch.randint(0, 2, (batch, 3), generator=generator, device=generator.device) * 2.0 - 1


def draw_augmentation(batch: int, generator: torch.Generator) -> Augmentation:
    """Random resized rotation, flips, intensity scale and shift (Alice, Sec. 4.2)."""
    uniform = (
        torch.rand(batch, 6, generator=generator, device=generator.device) * 2 - 1
    )  # (B, 6) in [-1, 1)
    low, high = (math.log(s) for s in SCALES)
    return Augmentation(
        angles=uniform[:, :3] * torch.tensor(ANGLES, device=generator.device).deg2rad(),
        scale=(low + (high - low) * (uniform[:, 3] + 1) / 2).exp(),
        flips=draw_flips(batch, generator),
        factor=1 + INTENSITY_SCALE * uniform[:, 4],
        shift=INTENSITY_SHIFT * uniform[:, 5],
    )


def rotation(angles: Tensor) -> Tensor:
    """Rotation matrices in (x, y, z) order, Rz Ry Rx. angles: (B, 3) radians about z, y, x. Returns (B, 3, 3)."""
    (cz, cy, cx), (sz, sy, sx) = angles.cos().unbind(1), angles.sin().unbind(1)
    zero, one = torch.zeros_like(cz), torch.ones_like(cz)
    rows = lambda *values: torch.stack(values, 1).view(-1, 3, 3)
    about_z = rows(cz, -sz, zero, sz, cz, zero, zero, zero, one)
    about_y = rows(cy, zero, sy, zero, one, zero, -sy, zero, cy)
    about_x = rows(one, zero, zero, zero, cx, -sx, zero, sx, cx)
    return about_z @ about_y @ about_x


def augment(crops: Tensor, drawn: Augmentation, spacing: tuple[float, float, float]) -> Tensor:
    """Apply what was drawn. Angles are true angles: the rotation is in mm, whatever the voxels' shape.

    crops: (B, C, D, H, W); spacing: (z, y, x) mm. What comes from outside the crop is the window's floor, 0.
    """
    size = torch.tensor(
        [n * s for n, s in zip(crops.shape[2:], spacing)][::-1], device=crops.device
    )  # (x, y, z) mm
    matrix = (
        rotation(drawn.angles) * drawn.flips.flip(1)[:, None, :] / drawn.scale[:, None, None]
    )  # output to input, mm
    matrix = matrix * size[None, None, :] / size[None, :, None]  # in half sizes
    grid = F.affine_grid(F.pad(matrix, (0, 1)), list(crops.shape), align_corners=False).to(
        crops.dtype
    )
    moved = F.grid_sample(crops, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    column = lambda values: values.to(crops.dtype)[:, None, None, None, None]
    return moved * column(drawn.factor) + column(drawn.shift)


def flip(crops: Tensor, flips: Tensor) -> Tensor:
    """Mirror each crop along the axes where flips, (B, 3), is -1."""
    for axis in range(3):
        crops = torch.where(
            (flips[:, axis] < 0)[:, None, None, None, None], crops.flip(axis + 2), crops
        )
    return crops


def make_views(
    crops: Tensor,
    unit: Triple,
    spacing: tuple[float, float, float],
    method: Method,
    generator: torch.Generator,
    rank: int = 0,
    world: int = 1,
) -> Views:
    """The views u, w of Q or r, v of K.

    crops: (B, C, D, H, W) on the generator's device; unit: voxels hidden together; spacing: (z, y, x) mm. The crops are part
    number rank of a batch in world equal parts: numbers are drawn for the whole batch, so a crop's views are the same
    however the batch is divided.
    """
    batch, tokens = len(crops) * world, math.prod(grid_of(crops.shape[2:], unit))
    own = slice(len(crops) * rank, len(crops) * (rank + 1))
    online = flip(crops, draw_flips(batch, generator)[own]) if method.online_flips else crops
    keep = random_keep(batch, tokens, method.mask_ratio, generator)[own]
    target = augment(crops, draw_augmentation(batch, generator).rows(own), spacing)
    target_keep = (
        random_keep(batch, tokens, method.target_mask_ratio, generator)[own]
        if method.target_mask_ratio
        else None
    )
    return Views(online, keep, masked_from(keep, tokens), target, target_keep)
