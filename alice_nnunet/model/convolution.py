"""A convolution whose gradient is right in bf16 on CPUs, too."""

from typing import Any

import torch
from torch import Tensor, nn

WRONG_DEPTH = 2  # voxels of a volume along z


class SafeConv3d(nn.Conv3d):
    """nn.Conv3d, which computes volumes of two voxels in depth in fp32 on a CPU.

    In bf16, on a CPU with AVX512-BF16, torch 2.14 leaves most of the gradient of a 3 x 3 x 3 kernel
    with stride 1 unset for such volumes: it holds whatever was in memory, such as 1e35. Volumes of
    1, 3, 4, 5, 6, 8 and 16 voxels in depth, other strides and other kernels are right.
    """

    @classmethod
    def of(cls, conv: nn.Conv3d) -> "SafeConv3d":
        """The same convolution, with the weights of `conv`."""
        arguments: Any = {
            "in_channels": conv.in_channels,
            "out_channels": conv.out_channels,
            "kernel_size": conv.kernel_size,
            "stride": conv.stride,
            "padding": conv.padding,
            "dilation": conv.dilation,
            "groups": conv.groups,
            "bias": conv.bias is not None,
        }
        safe = cls(**arguments, device="meta")
        safe.weight = conv.weight
        safe.bias = conv.bias
        return safe

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, D, H, W) -> (B, C', D', H', W')."""
        on_cpu = x.device.type == "cpu"
        if not (on_cpu and x.shape[2] == WRONG_DEPTH and torch.is_autocast_enabled("cpu")):
            return super().forward(x)

        with torch.autocast("cpu", enabled=False):
            return super().forward(x.float())
