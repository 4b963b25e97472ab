"""Padding of patches to what an encoder takes."""

import torch.nn.functional as F
from torch import Tensor

from alice_nnunet.geometry import Triple, ceil_to


def pad_to(image: Tensor, unit: Triple) -> Tensor:
    """Zeros at the end of each axis up to a multiple of unit voxels. (B, C, D, H, W) -> (B, C, D', H', W')."""
    missing = [new - old for new, old in zip(ceil_to(image.shape[2:], unit), image.shape[2:])]
    return F.pad(image, [n for m in reversed(missing) for n in (0, m)]) if any(missing) else image
