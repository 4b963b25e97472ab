"""Two augmented, overlapping patches of one volume, and where a point of the volume lies in them (SAM, Sec. III-A).

B batch, D H W voxels in (z, y, x) order, K points. Millimetres are counted from the middle of a crop, (z, y, x).
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from alice_nnunet.data.views import rotation
from alice_nnunet.geometry import Triple

ANGLES = (10.0, 10.0, 10.0)   # largest rotation about z, y, x in degrees
SCALES = (0.8, 1.25)          # size of the anatomy in the patch over its size in the volume
INTENSITY_SCALE, INTENSITY_SHIFT, NOISE = 0.25, 0.15, 0.05  # of the window


@dataclass
class Patches:
    """One patch of each crop. image: (B, 1, D, H, W). A point p of a patch shows the point matrix p + centre of its crop
    (mm); matrix: (B, 3, 3), centre: (B, 3). size: of the patches in mm, (3,)."""

    image: Tensor
    matrix: Tensor
    centre: Tensor
    size: Tensor

    def locate(self, points: Tensor) -> Tensor:
        """Where points of the crops, (B, K, 3) mm, lie in the patches: (B, K, 3), -1 and 1 are the patch's edges."""
        return torch.linalg.solve(self.matrix, (points - self.centre[:, None]).mT).mT / (self.size / 2)


def draw_patches(crops: Tensor, size: Triple, spacing: tuple[float, float, float], generator: torch.Generator) -> Patches:
    """A patch of each crop, at a random place in it, rotated, scaled, with another intensity scale, shift and noise.

    crops: (B, 1, D, H, W) on the generator's device. size: voxels of a patch, at most those of the crop. spacing: mm.
    What comes from outside the crop is 0. Two patches of one crop overlap where size is more than half of it.
    """
    batch, device = len(crops), crops.device
    uniform = torch.rand(batch, 9, generator=generator, device=device) * 2 - 1
    low, high = (math.log(s) for s in SCALES)
    scale = (low + (high - low) * (uniform[:, 3] + 1) / 2).exp()
    step = torch.tensor(spacing, device=device)
    whole, part = torch.tensor(crops.shape[2:], device=device) * step, torch.tensor(size, device=device) * step  # mm
    matrix = rotation(uniform[:, :3] * torch.tensor(ANGLES, device=device).deg2rad()).flip(1, 2) / scale[:, None, None]
    centre = uniform[:, 4:7] * (whole - part) / 2
    theta = torch.cat([matrix * part / whole[:, None], (2 * centre / whole)[..., None]], 2)  # in half sizes, (z, y, x)
    theta = torch.cat([theta[:, :, :3].flip(2), theta[:, :, 3:]], 2).flip(1)                 # (x, y, z), as torch wants it
    image = F.grid_sample(crops, F.affine_grid(theta, [batch, 1, *size], align_corners=False), align_corners=False)
    column = lambda values: values[:, None, None, None, None]
    image = image * column(1 + INTENSITY_SCALE * uniform[:, 7]) + column(INTENSITY_SHIFT * uniform[:, 8])
    noise = torch.randn(image.shape, generator=generator, device=device)
    return Patches(image + NOISE * noise, matrix, centre, part)


def vectors_at(maps: Tensor, places: Tensor) -> Tensor:
    """Interpolated vectors of length 1. maps: (B, C, ...); places: (B, K, 3) as locate gives them. Returns (B, K, C)."""
    sampled = F.grid_sample(maps, places.flip(2)[:, None, None], padding_mode="border", align_corners=False)  # (B, C, 1, 1, K)
    return F.normalize(sampled[:, :, 0, 0].transpose(1, 2), dim=2)
