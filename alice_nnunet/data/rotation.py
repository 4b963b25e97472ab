"""Rotations in space, for the augmentations of the model and of the matcher."""

import torch
from torch import Tensor


def rotation_matrices(angles: Tensor) -> Tensor:
    """Rotation matrices Rz Ry Rx for (x, y, z) coordinates.

    Args:
        angles: (B, 3) radians about z, y, x.

    Returns:
        (B, 3, 3).
    """
    cos_z, cos_y, cos_x = angles.cos().unbind(1)
    sin_z, sin_y, sin_x = angles.sin().unbind(1)
    zero = torch.zeros_like(cos_z)
    one = torch.ones_like(cos_z)

    about_z = matrices(cos_z, -sin_z, zero, sin_z, cos_z, zero, zero, zero, one)
    about_y = matrices(cos_y, zero, sin_y, zero, one, zero, -sin_y, zero, cos_y)
    about_x = matrices(one, zero, zero, zero, cos_x, -sin_x, zero, sin_x, cos_x)
    return about_z @ about_y @ about_x


def matrices(*entries: Tensor) -> Tensor:
    """3 x 3 matrices from their nine entries, row by row, (B,) each -> (B, 3, 3)."""
    return torch.stack(entries, 1).view(-1, 3, 3)
