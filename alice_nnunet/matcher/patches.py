"""Two augmented, overlapping patches of one volume, and where a point of the volume lies in them (SAM, Sec. III-A).

B batch, D H W voxels in (z, y, x) order, K points. Millimetres are counted from the middle of a crop, (z, y, x).
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from alice_nnunet.model.views import rotation
from alice_nnunet.geometry import Triple

ANGLES = (10.0, 10.0, 10.0)  # largest rotation about z, y, x in degrees
SCALES = (
    0.8,
    1.25,
)  # size of the anatomy in the patch over its size in the volume, along each axis
NODES: Triple = (
    3,
    5,
    5,
)  # of the grids from which bending and brightness are interpolated over a patch
BENDING = 0.1  # standard deviation of a node's displacement, over the distance between nodes
GAMMA, BRIGHTNESS, NOISE = (
    0.4,
    0.2,
    0.05,
)  # largest log of the exponent; log of the brightness, whole and local; of the window
ROUNDS = 8  # in which a bent patch's points are found


@dataclass
class Patches:
    """One patch of each crop. image: (B, 1, D, H, W). A point p of a patch (mm from its middle) shows the point
    matrix (p + bent(p)) + centre of its crop; matrix: (B, 3, 3), centre: (B, 3), bending: (B, 3, *NODES) mm. size: of the
    patches in mm, (3,)."""

    image: Tensor
    matrix: Tensor
    centre: Tensor
    bending: Tensor
    size: Tensor

    def locate(self, points: Tensor) -> Tensor:
        """Where points of the crops, (B, K, 3) mm, lie in the patches: (B, K, 3), -1 and 1 are the patch's edges."""
        straight = torch.linalg.solve(
            self.matrix, (points - self.centre[:, None]).mT
        ).mT  # p + bent(p)
        place = straight
        for _ in range(ROUNDS):
            place = straight - interpolated(self.bending, place / (self.size / 2))
        return place / (self.size / 2)


def draw_patches(
    crops: Tensor, size: Triple, spacing: tuple[float, float, float], generator: torch.Generator
) -> Patches:
    """A patch of each crop, at a random place in it, rotated, scaled along each axis, bent, with other intensities.

    crops: (B, 1, D, H, W) on the generator's device. size: voxels of a patch, at most those of the crop. spacing: mm.
    What comes from outside the crop is 0. Two patches of one crop overlap where size is more than half of it.
    """
    batch, device = len(crops), crops.device
    uniform = torch.rand(batch, 9, generator=generator, device=device) * 2 - 1
    low, high = (math.log(s) for s in SCALES)
    scale = (low + (high - low) * (uniform[:, 3:6] + 1) / 2).exp()
    step = torch.tensor(spacing, device=device)
    whole, part = (
        torch.tensor(crops.shape[2:], device=device) * step,
        torch.tensor(size, device=device) * step,
    )  # mm
    matrix = (
        rotation(uniform[:, :3] * torch.tensor(ANGLES, device=device).deg2rad()).flip(1, 2)
        / scale[:, None]
    )
    centre = uniform[:, 6:] * (whole - part) / 2
    bending = torch.randn(batch, 3, *NODES, generator=generator, device=device)
    bending = bending * (BENDING * part / torch.tensor(NODES, device=device)).view(3, 1, 1, 1)
    axes = [(torch.arange(n, device=device) + 0.5) / n * 2 - 1 for n in size]
    places = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).view(1, -1, 3)
    bent = (
        F.interpolate(bending, size, mode="trilinear", align_corners=False).flatten(2).mT
    )  # (B, D H W, 3) mm
    shown = (places * part / 2 + bent) @ matrix.mT + centre[:, None]  # mm in the crop
    grid = (shown / (whole / 2)).flip(2).view(batch, *size, 3)  # (x, y, z), as torch wants it
    image = F.grid_sample(crops, grid, align_corners=False)
    return Patches(with_other_intensities(image, generator), matrix, centre, bending, part)


def with_other_intensities(image: Tensor, generator: torch.Generator) -> Tensor:
    """Another gamma for each patch, another brightness for each part of it, and noise: what differs between two scanners,
    and, by the parts, between organs with and without contrast agent. (B, 1, D, H, W), 0 to 1, to the same."""
    batch, device = len(image), image.device
    gamma, whole = (
        torch.rand(2, batch, 1, 1, 1, 1, generator=generator, device=device) * 2 - 1
    ).unbind()
    local = torch.randn(batch, 1, *NODES, generator=generator, device=device)
    brightness = F.interpolate(
        (BRIGHTNESS * (whole + local)).exp(), image.shape[2:], mode="trilinear", align_corners=False
    )
    noise = torch.randn(image.shape, generator=generator, device=device)
    return (image.clamp(0, 1) ** (GAMMA * gamma).exp() * brightness + NOISE * noise).clamp(0, 1)


def interpolated(nodes: Tensor, places: Tensor) -> Tensor:
    """Values between the middles of the cells of a grid. nodes: (B, C, ...); places: (B, K, 3), -1 and 1 are its edges.
    Returns (B, K, C)."""
    found = F.grid_sample(
        nodes, places.flip(2)[:, None, None], padding_mode="border", align_corners=False
    )  # (B, C, 1, 1, K)
    return found[:, :, 0, 0].mT


def vectors_at(maps: Tensor, places: Tensor) -> Tensor:
    """Interpolated vectors of length 1. maps: (B, C, ...); places: (B, K, 3) as locate gives them. Returns (B, K, C)."""
    return F.normalize(interpolated(maps, places), dim=2)
