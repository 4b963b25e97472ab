"""nnFormer's encoder (Zhou et al. 2021) on visible units only, Alice Sec. 3.1.

Its convolutions overlap: next to a hidden unit they see zeros, in every layer, so nothing hidden leaks and every layer
sees as much of the hidden part as the first, which is nothing.

B batch, C channels, D H W voxels in nnU-Net's (z, y, x) order, V visible units, N all units, E width of the last stage.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from alice_nnunet.geometry import Triple, grid_of
from alice_nnunet.model.encoders.bias_table import BiasTable
from alice_nnunet.model.encoders.stage import Stage, init_weights
from alice_nnunet.model.encoders.units import (
    cut_blocks,
    neighbours,
    surround,
    unit_corners,
    volume_of,
)

TOKEN: Triple = (2, 4, 4)  # voxels


class Convolution(nn.Conv3d):
    """3 x 3 x 3 convolution with padding 1 on blocks, which sees the visible neighbours of a unit and zeros for hidden ones."""

    def __init__(self, channels_in: int, channels_out: int, stride: Triple):
        super().__init__(channels_in, channels_out, 3, stride, 1)

    def forward(self, blocks: Tensor, sides: Tensor | None) -> Tensor:
        """blocks: (B, V, z, y, x, C), even along strides of 2. sides: of units.neighbours(), None for intact crops.

        Returns (B, V, z / stride, y / stride, x / stride, C').
        """
        if sides is None:
            volume, padding = blocks.squeeze(1), self.padding
        else:
            volume, padding = surround(blocks, sides, tuple(s == 1 for s in self.stride)), (0, 0, 0)
        result = F.conv3d(
            volume.permute(0, 4, 1, 2, 3), self.weight, self.bias, self.stride, padding
        )
        return result.permute(0, 2, 3, 4, 1).unflatten(0, blocks.shape[:2])


class PatchEmbed(nn.Module):
    """Four convolutions from voxels to tokens of TOKEN voxels, with GELU and layer norm between them."""

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
            blocks = norm(F.gelu(blocks) if index < last else blocks)
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


class NnFormer(nn.Module):
    """Stages of windowed attention with overlapping convolutions before and between them.

    in_channels: image channels. crop_size: voxels of the pretraining crop. embed_width: channels of the first stage; each
    merging doubles them. depths, heads, windows: blocks, attention heads and window (z, y, x, in tokens) of each stage.
    bug_compatible: as the authors' code computes it, for weights trained there: several offsets share a row of the bias
    table, and padding is attended to. It encodes whole crops only.
    Raises ValueError for settings that do not fit each other.
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
        if not len(depths) == len(heads) == len(windows):
            raise ValueError(
                f"depths, heads and windows need one value for each stage, got {depths}, {heads}, {windows}"
            )
        if embed_width % 2:
            raise ValueError(f"embed_width must be even, got {embed_width}")
        scale = 2 ** (len(depths) - 1)
        self.unit: Triple = tuple(
            t * scale for t in TOKEN
        )  # voxels hidden or shown together: a token of the last stage
        self.grid, self.width = grid_of(crop_size, self.unit), embed_width * scale
        widths = [embed_width * 2**i for i in range(len(depths))]
        self.patch_embed = PatchEmbed(in_channels, embed_width)
        tables = [
            BiasTable(tuple(window), "nnformer" if bug_compatible else "right")
            for window in windows
        ]
        self.stages = nn.ModuleList(
            Stage(*settings) for settings in zip(widths, depths, heads, tables)
        )
        self.merges = nn.ModuleList(Merge(width) for width in widths[:-1])
        self.norm = nn.LayerNorm(
            self.width
        )  # those of earlier stages serve the decoder alone and are with it
        self.apply(init_weights)

    def stage_outputs(self, crop: Tensor, keep: Tensor | None) -> list[Tensor]:
        """The tokens after each stage, blocks (B, V, z, y, x, C), see units.py; not normalised."""
        units = grid_of(crop.shape[2:], self.unit)
        corners = None if keep is None else unit_corners(keep, units)
        sides = None if keep is None else neighbours(corners, units)
        x, outputs = self.patch_embed(cut_blocks(crop, keep, self.unit), sides), []
        for index, stage in enumerate(self.stages):
            if index:
                x = self.merges[index - 1](x, sides)
            x = stage(x, corners, units)
            outputs.append(x)
        return outputs

    def forward(self, crop: Tensor, keep: Tensor | None = None) -> Tensor:
        """Encode the units listed in keep, or all of them (Alice, Sec. 3.1).

        crop: (B, C, D, H, W); keep: (B, V). Returns (B, V, E), or (B, N, E) without keep.
        """
        return self.norm(self.stage_outputs(crop, keep)[-1].flatten(1, 4))

    def features(self, crop: Tensor) -> list[Tensor]:
        """What nnFormer's decoder takes: the tokens after each stage, those of the last one normalised.

        crop: (B, C, D, H, W). Returns volumes (B, embed_width, D/2, H/4, W/4), then twice the channels at half the size.
        """
        *earlier, last = self.stage_outputs(crop, None)
        return [volume_of(x) for x in (*earlier, self.norm(last))]
