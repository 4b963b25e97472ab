"""Two augmented, overlapping patches of one volume, and where its points lie in them.

SAM, Sec. III-A. B batch, D H W voxels in (z, y, x) order, K points. Millimetres are counted from
the middle of a crop, (z, y, x).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from alice_nnunet.data.rotation import rotation_matrices
from alice_nnunet.geometry import Spacing, Triple

LARGEST_ANGLES = (10.0, 10.0, 10.0)  # degrees about z, y, x
SCALE_RANGE = (0.8, 1.25)  # size of the anatomy in the patch over that in the volume, on each axis
NODES: Triple = (3, 5, 5)  # of the grids that bending and brightness are interpolated from
BENDING = 0.1  # standard deviation of a node's displacement, over the distance between nodes
GAMMA = 0.4  # largest logarithm of the exponent
BRIGHTNESS = 0.2  # logarithm of the factor: largest of the patch, standard deviation of its parts
NOISE = 0.05  # standard deviation, over the window
ROUNDS = 8  # of the fixed-point iteration that finds points in a bent patch


@dataclass
class Patches:
    """One patch of each crop.

    A point p of a patch, mm from its middle, shows the point matrix (p + bent(p)) + centre of its
    crop; bent interpolates bending.

    Attributes:
        image: (B, 1, D, H, W).
        matrix: (B, 3, 3).
        centre: (B, 3) mm.
        bending: (B, 3, *NODES) mm, displacements of the nodes.
        size: (3,) mm, of the patches.
    """

    image: Tensor
    matrix: Tensor
    centre: Tensor
    bending: Tensor
    size: Tensor

    def locate(self, points: Tensor) -> Tensor:
        """Where points of the crops lie in the patches.

        Args:
            points: (B, K, 3) mm in the crops.

        Returns:
            (B, K, 3); -1 and 1 are the edges of the patch.
        """
        moved = points - self.centre[:, None]
        # solve_ex, for solve waits for the device; a rotation that is scaled has an inverse.
        bent = torch.linalg.solve_ex(self.matrix, moved.mT).result.mT  # p + bent(p)

        place = bent
        for _ in range(ROUNDS):
            place = bent - interpolated(self.bending, place / (self.size / 2))
        return place / (self.size / 2)


def draw_patches(
    crops: Tensor, size: Triple, spacing: Spacing, generator: torch.Generator
) -> Patches:
    """Draw a patch of each crop.

    It lies at a random place in the crop, is rotated, scaled along each axis and bent, and has
    other intensities. Outside the crop it is 0. Two patches of one crop overlap where size is
    more than half of the crop's.

    Args:
        crops: (B, 1, D, H, W) on the generator's device.
        size: of a patch in voxels, at most that of the crop.
        spacing: mm.
        generator: source of the random numbers.
    """
    batch = len(crops)
    device = crops.device
    step = on_device(spacing, device)
    crop_size = on_device(crops.shape[2:], device) * step  # mm
    patch_size = on_device(size, device) * step  # mm

    # Where the patch lies in the crop.
    uniform = torch.rand(batch, 9, generator=generator, device=device) * 2 - 1
    largest_angles = on_device(LARGEST_ANGLES, device).deg2rad()
    rotation = rotation_matrices(uniform[:, :3] * largest_angles).flip(1, 2)  # to (z, y, x)
    low, high = (math.log(scale) for scale in SCALE_RANGE)
    scale = (low + (high - low) * (uniform[:, 3:6] + 1) / 2).exp()
    matrix = rotation / scale[:, None]
    centre = uniform[:, 6:] * (crop_size - patch_size) / 2

    # How it is bent.
    deviation = BENDING * patch_size / on_device(NODES, device)
    bending = torch.randn(batch, 3, *NODES, generator=generator, device=device)
    bending = bending * deviation.view(3, 1, 1, 1)

    # What it shows.
    axes = [(torch.arange(n, device=device) + 0.5) / n * 2 - 1 for n in size]
    places = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).view(1, -1, 3)
    bent = F.interpolate(bending, size, mode="trilinear", align_corners=False)
    bent = bent.flatten(2).mT  # (B, D H W, 3) mm
    shown = (places * patch_size / 2 + bent) @ matrix.mT + centre[:, None]  # mm in the crop
    grid = (shown / (crop_size / 2)).flip(2)  # (x, y, z), as torch takes it
    image = F.grid_sample(crops, grid.view(batch, *size, 3), align_corners=False)

    return Patches(change_intensities(image, generator), matrix, centre, bending, patch_size)


def on_device(numbers: Sequence[float], device: torch.device) -> Tensor:
    """A few numbers on a device, which is not waited for."""
    return torch.tensor(numbers).to(device, non_blocking=True)


def change_intensities(image: Tensor, generator: torch.Generator) -> Tensor:
    """Another gamma for each patch, another brightness for each part of it, and noise.

    This is what differs between two scanners and, by the parts, between organs with and without
    contrast agent.

    Args:
        image: (B, 1, D, H, W), 0 to 1.
        generator: source of the random numbers.

    Returns:
        (B, 1, D, H, W), 0 to 1.
    """
    batch = len(image)
    device = image.device
    uniform = torch.rand(2, batch, 1, 1, 1, 1, generator=generator, device=device) * 2 - 1
    gamma, whole = uniform.unbind()
    local = torch.randn(batch, 1, *NODES, generator=generator, device=device)
    noise = torch.randn(image.shape, generator=generator, device=device)

    factors = (BRIGHTNESS * (whole + local)).exp()
    brightness = F.interpolate(factors, image.shape[2:], mode="trilinear", align_corners=False)
    exponent = (GAMMA * gamma).exp()
    return (image.clamp(0, 1) ** exponent * brightness + NOISE * noise).clamp(0, 1)


def interpolated(nodes: Tensor, places: Tensor) -> Tensor:
    """Values between the middles of the cells of a grid.

    Args:
        nodes: (B, C, ...).
        places: (B, K, 3); -1 and 1 are the edges of the grid.

    Returns:
        (B, K, C).
    """
    grid = places.flip(2)[:, None, None]  # (x, y, z), as torch takes it
    found = F.grid_sample(nodes, grid, padding_mode="border", align_corners=False)
    return found[:, :, 0, 0].mT  # of (B, C, 1, 1, K)


def vectors_at(maps: Tensor, places: Tensor) -> Tensor:
    """Interpolated vectors of length 1.

    Args:
        maps: (B, C, ...).
        places: (B, K, 3), as Patches.locate gives them.

    Returns:
        (B, K, C).
    """
    return F.normalize(interpolated(maps, places), dim=2)
