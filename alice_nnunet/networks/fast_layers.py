"""Layers of MONAI's decoder blocks that are computed in another way: same weights, same values, less time.

B batch, C channels, D H W voxels.
"""

import torch
from torch import Tensor, nn


class InstanceNorm(nn.Module):
    """nn.InstanceNorm3d as MONAI's blocks have it, without weights or running means, as a group norm of one channel a group.

    The output of torch's own is a view of a batch norm's. What MONAI does with it in place, LeakyReLU and the sum with
    the shortcut, costs autograd three more copies of the whole tensor and one of zeros each time; of a group norm, nothing.
    """

    def __init__(self, norm: nn.InstanceNorm3d):
        """Raises ValueError where norm has weights or running means."""
        super().__init__()
        if norm.affine or norm.track_running_stats:
            raise ValueError(f"{norm} has weights or running means")
        self.eps = norm.eps

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, D, H, W) -> the same, in x's own type: F.group_norm would return float32 under autocast."""
        b, c, d, h, w = x.shape
        return torch.native_group_norm(x.contiguous(), None, None, b, c, d * h * w, c, self.eps)[0]


class PointwiseConv(nn.Conv3d):
    """A convolution whose kernel is one voxel; on a CPU a matrix product, which takes half the time or less of torch's convolution."""

    def __init__(self, conv: nn.Conv3d):
        """With conv's own weights."""
        super().__init__(
            conv.in_channels, conv.out_channels, 1, bias=conv.bias is not None, device="meta"
        )
        self.weight, self.bias = conv.weight, conv.bias

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, D, H, W) -> (B, C', D, H, W)."""
        if x.device.type != "cpu":
            return super().forward(x)
        out = torch.einsum("oi,bizyx->bozyx", self.weight.flatten(1), x)
        return out if self.bias is None else out + self.bias.view(-1, 1, 1, 1)


def replace_layers(module: nn.Module) -> None:
    """Put these in the place of what they stand for everywhere within module."""
    for name, child in module.named_children():
        if isinstance(child, nn.InstanceNorm3d):
            setattr(module, name, InstanceNorm(child))
        elif (
            isinstance(child, nn.Conv3d)
            and child.kernel_size == child.stride == (1, 1, 1)
            and child.groups == 1
        ):
            setattr(module, name, PointwiseConv(child))
        else:
            replace_layers(child)
