"""Padding of patches to the sizes that an encoder takes."""

import torch.nn.functional as F
from torch import Tensor

from alice_nnunet.geometry import Triple, ceil_to


def pad_to(image: Tensor, unit: Triple) -> Tensor:
    """Pad with zeros at the end of each axis up to a multiple of `unit` voxels.

    Args:
        image: (B, C, D, H, W).
        unit: voxels (z, y, x).

    Returns:
        (B, C, D', H', W').
    """
    size = image.shape[2:]
    z, y, x = (new - old for new, old in zip(ceil_to(size, unit), size))
    return F.pad(image, (0, x, 0, y, 0, z)) if x or y or z else image
