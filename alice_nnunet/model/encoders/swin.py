"""Swin UNETR's encoder (Hatamizadeh et al. 2022), on visible units only (Alice, Sec. 3.1).

Shapes: B crops, C channels, D H W voxels in (z, y, x) order, V visible units, N all units, E width
of the last stage.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alice_nnunet.geometry import Triple, grid_of, triple
from alice_nnunet.model.encoders.base import Encoder
from alice_nnunet.model.encoders.bias_table import BiasTable
from alice_nnunet.model.encoders.stage import Stage, check_stages
from alice_nnunet.model.encoders.units import cut_blocks, merge_blocks, unit_corners, volume_of
from alice_nnunet.model.initialisation import xavier_uniform

TOKEN: Triple = (2, 2, 2)  # voxels
# Order of the eight neighbours that are merged: MONAI's, so that its weights fit. The index of a
# neighbour is 4 z + 2 y + x.
MERGED = (0, 4, 2, 1, 6, 5, 3, 7)
MIDDLE = 0.25  # typical brightness: air is 0, soft tissue about 0.45 of the window


class Merge(nn.Module):
    """Merge eight neighbouring tokens of C channels into one of 2 C (Liu et al. 2021)."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(8 * width)
        self.reduction = nn.Linear(8 * width, 2 * width, bias=False)

    def forward(self, blocks: Tensor) -> Tensor:
        """(B, V, z, y, x, C) -> (B, V, z / 2, y / 2, x / 2, 2 C)."""
        # Not an index: a list of numbers would be copied to a GPU each time.
        eight = merge_blocks(blocks, (2, 2, 2)).flatten(-3).unbind(-1)  # (..., C) each
        return self.reduction(self.norm(torch.cat([eight[number] for number in MERGED], -1)))


class Swin(Encoder):
    """Stages of windowed attention, each followed by merging 2 x 2 x 2 tokens.

    A merged token of the last stage is a unit.

    Args:
        in_channels: image channels.
        crop_size: voxels of the pretraining crop (z, y, x).
        embed_width: channels of the first stage. Each merging doubles them.
        depths: number of blocks of each stage.
        heads: attention heads of each stage.
        windows: window (z, y, x) of each stage, in tokens.
        bug_compatible: compute as MONAI does, for weights trained there. Windows smaller than the
            stage's read wrong rows of the bias table, and padding is attended to. Such an encoder
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

        scale = 2 ** len(depths)
        self.unit = triple(tokens * scale for tokens in TOKEN)
        self.grid = grid_of(crop_size, self.unit)
        self.width = embed_width * scale

        self.patch_embed = nn.Conv3d(in_channels, embed_width, TOKEN, TOKEN)

        indexing = "monai" if bug_compatible else "exact"
        tables = [BiasTable(triple(window), indexing) for window in windows]
        widths = [embed_width * 2**stage for stage in range(len(depths))]
        self.stages = nn.ModuleList(
            Stage(*settings) for settings in zip(widths, depths, heads, tables)
        )
        self.merges = nn.ModuleList(Merge(width) for width in widths)

        self.apply(xavier_uniform)
        self.centre_input()

    def centre_input(self) -> None:
        """Start with the bias that maps an image of brightness MIDDLE to 0.

        All tokens share their brightness. With a random bias, nearly all of a token's length is
        the same everywhere. The layer norms keep that, and what differs between tokens is lost.
        """
        assert self.patch_embed.bias is not None
        with torch.no_grad():
            self.patch_embed.bias.copy_(-MIDDLE * self.patch_embed.weight.flatten(1).sum(1))

    def stage_grid(self, stage: int) -> Triple:
        """Tokens of the pretraining crop in a stage's attention, (z, y, x)."""
        in_unit = self.unit[0] // TOKEN[0] // 2**stage  # the same along y and x
        return triple(units * in_unit for units in self.grid)

    def stage_outputs(self, crop: Tensor, keep: Tensor | None) -> list[Tensor]:
        """The embedded tokens, then the merged tokens of each stage.

        Arguments as for `forward`. Returns blocks (B, V, z, y, x, C), see units.py.
        """
        voxels = merge_blocks(cut_blocks(crop, keep, self.unit), TOKEN).flatten(-4)  # (..., C * 8)
        x = F.linear(voxels, self.patch_embed.weight.flatten(1), self.patch_embed.bias)

        units = grid_of(crop.shape[2:], self.unit)
        corners = None if keep is None else unit_corners(keep, units)
        outputs = [x]
        for stage, merge in zip(self.stages, self.merges):
            x = merge(stage(x, corners, units))
            outputs.append(x)
        return outputs

    def forward(self, crop: Tensor, keep: Tensor | None = None) -> Tensor:
        """Encode the units listed in `keep`, or all of them. See `Encoder.forward`.

        The result is normalised as MONAI normalises what it hands to its decoder.
        """
        x = self.stage_outputs(crop, keep)[-1].flatten(1, 4)
        return F.layer_norm(x, x.shape[-1:])

    def features(self, crop: Tensor) -> list[Tensor]:
        """The embedded tokens and the merged tokens of each stage, for Swin UNETR's decoder.

        Args:
            crop: (B, C, D, H, W).

        Returns:
            Normalised volumes: (B, embed_width, D / 2, H / 2, W / 2), and from then on twice the
            channels at half the size.
        """
        return [volume_of(F.layer_norm(x, x.shape[-1:])) for x in self.stage_outputs(crop, None)]
