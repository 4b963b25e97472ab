"""Equivalents of layers in MONAI's decoder blocks: same weights, same values, faster or safer.

Shapes: B crops, C channels, D H W voxels.
"""

import torch
from torch import Tensor, nn

from alice_nnunet.model.convolution import SafeConv3d


class InstanceNorm(nn.Module):
    """nn.InstanceNorm3d without weights or running means, as a group norm of one channel a group.

    The output of torch's own is a view of a batch norm's output. MONAI changes it in place
    (LeakyReLU, the sum with the shortcut), and for a view autograd then makes three more copies of
    the whole tensor and one of zeros each time. For a group norm it makes none.

    Raises:
        ValueError: the norm has weights or running means.
    """

    def __init__(self, norm: nn.InstanceNorm3d):
        super().__init__()
        if norm.affine or norm.track_running_stats:
            raise ValueError(f"{norm} has weights or running means, expected a norm without")
        self.eps = norm.eps

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, D, H, W) -> the same, in x's own type.

        F.group_norm would return float32 under autocast.
        """
        b, c, d, h, w = x.shape
        return torch.native_group_norm(x.contiguous(), None, None, b, c, d * h * w, c, self.eps)[0]


class PointwiseConv(nn.Conv3d):
    """A convolution whose kernel is one voxel, with the weights of `conv`.

    On a CPU it is a matrix product, which takes at most half the time of torch's convolution.
    """

    def __init__(self, conv: nn.Conv3d):
        has_bias = conv.bias is not None
        super().__init__(conv.in_channels, conv.out_channels, 1, bias=has_bias, device="meta")
        self.weight = conv.weight
        self.bias = conv.bias

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, D, H, W) -> (B, C', D, H, W)."""
        if x.device.type != "cpu":
            return super().forward(x)

        out = torch.einsum("oi,bizyx->bozyx", self.weight.flatten(1), x)
        return out if self.bias is None else out + self.bias.view(-1, 1, 1, 1)


def replace_layers(module: nn.Module) -> None:
    """Replace supported layers in `module`, recursively, with their equivalents.

    The equivalents share the weights of the layers that they replace.
    """
    for name, child in module.named_children():
        if isinstance(child, nn.InstanceNorm3d):
            setattr(module, name, InstanceNorm(child))
        elif isinstance(child, nn.Conv3d) and is_pointwise(child):
            setattr(module, name, PointwiseConv(child))
        elif type(child) is nn.Conv3d:
            setattr(module, name, SafeConv3d.of(child))
        else:
            replace_layers(child)


def is_pointwise(conv: nn.Conv3d) -> bool:
    """Whether a convolution looks at one voxel at a time and mixes all channels."""
    return conv.kernel_size == conv.stride == (1, 1, 1) and conv.groups == 1
