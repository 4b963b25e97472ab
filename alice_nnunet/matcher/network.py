"""The network of SAM, the self-supervised anatomical embedding (Yan et al., IEEE TMI 2022).

Each point of a volume gets a fine and a coarse vector that tell where in a body it lies. The first
stages have no kernel along z: they look at axial slices. B batch, D H W voxels in (z, y, x) order.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from alice_nnunet.geometry import Triple, triple
from alice_nnunet.matcher.presets import COARSE_STRIDE
from alice_nnunet.model.convolution import SafeConv3d

# Kernel and stride of each of the four stages, (z, y, x).
KERNELS: tuple[Triple, ...] = ((1, 3, 3), (1, 3, 3), (3, 3, 3), (3, 3, 3))
STRIDES: tuple[Triple, ...] = ((1, 2, 2), (1, 2, 2), (1, 2, 2), (2, 2, 2))


class ConvNorm(nn.Sequential):
    """Convolution without bias and batch norm; same size where the stride is 1."""

    def __init__(self, inputs: int, outputs: int, kernel: Triple, stride: Triple = (1, 1, 1)):
        super().__init__()
        padding = triple(k // 2 for k in kernel)
        self.conv = SafeConv3d(inputs, outputs, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm3d(outputs)
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")


class Residual(nn.Module):
    """ResNet's basic block, (B, inputs, D, H, W) -> (B, outputs, ...)."""

    def __init__(self, inputs: int, outputs: int, kernel: Triple, stride: Triple = (1, 1, 1)):
        super().__init__()
        self.conv1 = ConvNorm(inputs, outputs, kernel, stride)
        self.conv2 = ConvNorm(outputs, outputs, kernel)
        self.downsample = None
        if stride != (1, 1, 1):
            self.downsample = ConvNorm(inputs, outputs, (1, 1, 1), stride)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        return F.relu(self.conv2(F.relu(self.conv1(x))) + shortcut)


class Pyramid(nn.Module):
    """Feature pyramid: maps of several resolutions, finest first, summed to one of the finest."""

    def __init__(self, inputs: tuple[int, ...], channels: int):
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv3d(n, channels, 1) for n in inputs)
        self.out = SafeConv3d(channels, channels, 3, padding=1)

    def forward(self, maps: list[Tensor]) -> Tensor:
        x = self.lateral[-1](maps[-1])
        for lateral, finer in zip(reversed(self.lateral[:-1]), reversed(maps[:-1])):
            x = lateral(finer) + F.interpolate(x, finer.shape[2:], mode="nearest")
        return self.out(x)


class SamNet(nn.Module):
    """ResNet-18 in 3D under two feature pyramids.

    Args:
        widths: channels of the four stages.
        channels: C, of a vector.
        stem: kernel of the first convolution.
    """

    stride: Triple = COARSE_STRIDE  # sizes must be multiples of it

    def __init__(
        self,
        widths: tuple[int, int, int, int] = (64, 128, 256, 512),
        channels: int = 128,
        stem: Triple = (3, 7, 7),
    ):
        super().__init__()
        self.stem = ConvNorm(1, widths[0], stem)

        self.stages = nn.ModuleList()
        inputs = widths[0]
        for outputs, kernel, stride in zip(widths, KERNELS, STRIDES):
            self.stages.append(
                nn.Sequential(
                    Residual(inputs, outputs, kernel, stride), Residual(outputs, outputs, kernel)
                )
            )
            inputs = outputs

        self.fine = Pyramid(tuple(widths[:3]), channels)
        self.coarse = Pyramid((widths[3],), channels)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Compute vectors of length 1, each for the voxels of its stride.

        Args:
            image: (B, 1, D, H, W), 0 to 1.

        Returns:
            fine: (B, C, D/2, H/2, W/2), sizes rounded up.
            coarse: (B, C, D/4, H/16, W/16), sizes rounded up.
        """
        x = F.relu(self.stem(image))
        maps = []
        for number, stage in enumerate(self.stages):
            x = stage(x)
            if number == 0:
                x = F.max_pool3d(x, (2, 1, 1), ceil_mode=True)
            maps.append(x)

        fine = F.normalize(self.fine(maps[:3]), dim=1)
        coarse = F.normalize(self.coarse(maps[3:]), dim=1)
        return fine, coarse
