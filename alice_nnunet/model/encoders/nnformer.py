"""nnFormer's encoder (Zhou et al. 2021), on visible units only (Alice, Sec. 3.1).

Its convolutions overlap. Next to a hidden unit they see zeros, in every layer, so no layer sees
anything of what is hidden.

Shapes: B crops, C channels, D H W voxels in (z, y, x) order, V visible units, N all units, E width
of the last stage.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from alice_nnunet.geometry import Triple, grid_of, triple
from alice_nnunet.model.encoders.base import Encoder
from alice_nnunet.model.encoders.bias_table import BiasTable
from alice_nnunet.model.encoders.stage import Stage, check_stages
from alice_nnunet.model.encoders.units import (
    cut_blocks,
    neighbours,
    surround,
    unit_corners,
    volume_of,
)
from alice_nnunet.model.initialisation import xavier_uniform

TOKEN: Triple = (2, 4, 4)  # voxels


class Convolution(nn.Conv3d):
    """3 x 3 x 3 convolution with padding 1 on blocks.

    It sees the visible neighbours of a unit, and zeros for hidden ones.
    """

    def __init__(self, channels_in: int, channels_out: int, stride: Triple):
        super().__init__(channels_in, channels_out, 3, stride, 1)

    def forward(  # type: ignore[override]  # a convolution with one more input
        self, blocks: Tensor, sides: Tensor | None
    ) -> Tensor:
        """Convolve every block together with its surroundings.

        Args:
            blocks: (B, V, z, y, x, C), with even sizes along strides of 2.
            sides: of units.neighbours, or None for intact crops.

        Returns:
            (B, V, z / stride, y / stride, x / stride, C').
        """
        if sides is None:
            volume = blocks.squeeze(1)
            padding = self.padding
        else:
            # With stride 2 and even sizes the kernel does not reach behind the block.
            after = triple(stride == 1 for stride in self.stride)
            volume = surround(blocks, sides, after)
            padding = (0, 0, 0)

        volume = volume.permute(0, 4, 1, 2, 3)
        result = F.conv3d(volume, self.weight, self.bias, self.stride, padding)
        return result.permute(0, 2, 3, 4, 1).unflatten(0, blocks.shape[:2])


class PatchEmbed(nn.Module):
    """Four convolutions from voxels to tokens, each with layer norm, with GELU between them."""

    def __init__(self, channels: int, width: int):
        super().__init__()
        half = width // 2

        self.convolutions = nn.ModuleList(
            [
                Convolution(channels, half, (2, 2, 2)),
                Convolution(half, half, (1, 1, 1)),
                Convolution(half, width, (1, 2, 2)),
                Convolution(width, width, (1, 1, 1)),
            ]
        )
        self.norms = nn.ModuleList(
            [nn.LayerNorm(half), nn.LayerNorm(half), nn.LayerNorm(width), nn.LayerNorm(width)]
        )

    def forward(self, blocks: Tensor, sides: Tensor | None) -> Tensor:
        """Voxels (B, V, z, y, x, C) -> tokens (B, V, z / 2, y / 4, x / 4, width)."""
        last = len(self.norms) - 1
        for index, (convolution, norm) in enumerate(zip(self.convolutions, self.norms)):
            blocks = convolution(blocks, sides)
            if index < last:
                blocks = F.gelu(blocks)
            blocks = norm(blocks)
        return blocks


class Merge(nn.Module):
    """GELU, layer norm and a convolution of stride 2 that doubles the channels."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.reduction = Convolution(width, 2 * width, (2, 2, 2))

    def forward(self, blocks: Tensor, sides: Tensor | None) -> Tensor:
        """(B, V, z, y, x, C) -> (B, V, z / 2, y / 2, x / 2, 2 C)."""
        return self.reduction(self.norm(F.gelu(blocks)), sides)


class NnFormer(Encoder):
    """Stages of windowed attention, with overlapping convolutions before and between them.

    A token of the last stage is a unit.

    Args:
        in_channels: image channels.
        crop_size: voxels of the pretraining crop (z, y, x).
        embed_width: channels of the first stage. Each merging doubles them.
        depths: number of blocks of each stage.
        heads: attention heads of each stage.
        windows: window (z, y, x) of each stage, in tokens.
        bug_compatible: compute as the authors' code does, for weights trained there. Several
            offsets share a row of the bias table, and padding is attended to. Such an encoder
            takes intact crops only.

    Raises:
        ValueError: the settings do not fit each other.
    """

    def __init__(
        self,
        in_channels: int,
        crop_size: Triple,
        embed_width: int,
        depths: tuple,
        heads: tuple,
        windows: tuple,
        bug_compatible: bool = False,
    ):
        super().__init__()
        check_stages(depths, heads, windows)
        if embed_width % 2:
            raise ValueError(f"embed_width must be even, got {embed_width}")

        scale = 2 ** (len(depths) - 1)
        self.unit = triple(tokens * scale for tokens in TOKEN)
        self.grid = grid_of(crop_size, self.unit)
        self.width = embed_width * scale

        self.patch_embed = PatchEmbed(in_channels, embed_width)

        indexing = "nnformer" if bug_compatible else "exact"
        self.tables = [BiasTable(triple(window), indexing) for window in windows]
        widths = [embed_width * 2**stage for stage in range(len(depths))]
        self.stages = nn.ModuleList(
            Stage(*settings) for settings in zip(widths, depths, heads, self.tables)
        )
        self.merges = nn.ModuleList(Merge(width) for width in widths[:-1])
        # The norms of earlier stages only serve the segmentation network's decoder and are there.
        self.norm = nn.LayerNorm(self.width)

        self.apply(xavier_uniform)

    def stage_grid(self, stage: int) -> Triple:
        """Tokens of the pretraining crop in a stage's attention, (z, y, x)."""
        in_unit = self.unit[0] // TOKEN[0] // 2**stage  # the same along y and x
        return triple(units * in_unit for units in self.grid)

    def stage_outputs(self, crop: Tensor, keep: Tensor | None) -> list[Tensor]:
        """The tokens after each stage, not normalised.

        Arguments as for `forward`. Returns blocks (B, V, z, y, x, C), see units.py.
        """
        units = grid_of(crop.shape[2:], self.unit)
        corners = None if keep is None else unit_corners(keep, units)
        sides = (
            None
            if corners is None
            else neighbours(corners, units).to(crop.device, non_blocking=True)
        )

        outputs = []
        x = self.patch_embed(cut_blocks(crop, keep, self.unit), sides)
        for index, stage in enumerate(self.stages):
            if index > 0:
                x = self.merges[index - 1](x, sides)
            x = stage(x, corners, units)
            outputs.append(x)
        return outputs

    def forward(self, crop: Tensor, keep: Tensor | None = None) -> Tensor:
        """Encode the units listed in `keep`, or all of them. See `Encoder.forward`."""
        return self.norm(self.stage_outputs(crop, keep)[-1].flatten(1, 4))

    def features(self, crop: Tensor) -> list[Tensor]:
        """The tokens after each stage, for nnFormer's decoder. Those of the last are normalised.

        Args:
            crop: (B, C, D, H, W).

        Returns:
            Volumes: (B, embed_width, D / 2, H / 4, W / 4), and from then on twice the channels at
            half the size.
        """
        *earlier, last = self.stage_outputs(crop, None)
        return [volume_of(x) for x in (*earlier, self.norm(last))]
