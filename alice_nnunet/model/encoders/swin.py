"""Swin UNETR's encoder (Hatamizadeh et al. 2022) on visible units only, Alice Sec. 3.1.

B batch, C channels, D H W voxels in nnU-Net's (z, y, x) order, V visible units, N all units, E width of the last stage.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alice_nnunet.geometry import Triple, grid_of
from alice_nnunet.model.encoders.bias_table import BiasTable
from alice_nnunet.model.encoders.stage import Stage, init_weights
from alice_nnunet.model.encoders.units import cut_blocks, merge_blocks, unit_corners, volume_of

TOKEN: Triple = (2, 2, 2)  # voxels
# Order of the eight neighbours that are merged: MONAI's, so that its weights fit. Index is 4 z + 2 y + x.
MERGED = (0, 4, 2, 1, 6, 5, 3, 7)
MIDDLE = 0.25  # of the window: air is 0, soft tissue about 0.45


class Merge(nn.Module):
    """Eight neighbouring tokens of C channels become one of 2 C (Liu et al. 2021)."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(8 * width)
        self.reduction = nn.Linear(8 * width, 2 * width, bias=False)

    def forward(self, blocks: Tensor) -> Tensor:
        """(B, V, z, y, x, C) -> (B, V, z / 2, y / 2, x / 2, 2 C)."""
        eight = merge_blocks(blocks, (2, 2, 2)).flatten(-3)[..., MERGED]  # (..., C, 8)
        return self.reduction(self.norm(eight.transpose(-1, -2).flatten(-2)))


class Swin(nn.Module):
    """Stages of windowed attention, each followed by merging 2 x 2 x 2 tokens; the merged tokens of the last are the units.

    in_channels: image channels. crop_size: voxels of the pretraining crop. embed_width: channels of the first stage; each
    merging doubles them. depths, heads, windows: blocks, attention heads and window (z, y, x, in tokens) of each stage.
    bug_compatible: as MONAI computes it, for weights trained there: relative positions are misread in windows smaller
    than the stage's, and padding is attended to. It encodes whole crops only.
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
        scale = 2 ** len(depths)
        self.unit: Triple = tuple(
            t * scale for t in TOKEN
        )  # voxels hidden or shown together: a token of the last stage
        self.grid, self.width = grid_of(crop_size, self.unit), embed_width * scale
        self.patch_embed = nn.Conv3d(in_channels, embed_width, TOKEN, TOKEN)
        tables = [
            BiasTable(tuple(window), "monai" if bug_compatible else "right") for window in windows
        ]
        self.stages = nn.ModuleList(
            Stage(embed_width * 2**i, *settings)
            for i, settings in enumerate(zip(depths, heads, tables))
        )
        self.merges = nn.ModuleList(Merge(embed_width * 2**i) for i in range(len(depths)))
        self.apply(init_weights)
        self.centre_input()

    def centre_input(self) -> None:
        """Start with the bias that takes an image of MIDDLE to zero. Brightness is what all tokens share: with a bias drawn at
        random nearly all of their length is the same for every place, the layer norms keep that, and what differs is lost."""
        with torch.no_grad():
            self.patch_embed.bias.copy_(-MIDDLE * self.patch_embed.weight.flatten(1).sum(1))

    def stage_outputs(self, crop: Tensor, keep: Tensor | None) -> list[Tensor]:
        """Embedded tokens, then the merged tokens of each stage: blocks (B, V, z, y, x, C), see units.py."""
        voxels = merge_blocks(cut_blocks(crop, keep, self.unit), TOKEN).flatten(-4)  # (..., C * 8)
        x = F.linear(voxels, self.patch_embed.weight.flatten(1), self.patch_embed.bias)
        units = grid_of(crop.shape[2:], self.unit)
        corners, outputs = None if keep is None else unit_corners(keep, units), [x]
        for stage, merge in zip(self.stages, self.merges):
            x = merge(stage(x, corners, units))
            outputs.append(x)
        return outputs

    def forward(self, crop: Tensor, keep: Tensor | None = None) -> Tensor:
        """Encode the units listed in keep, or all of them (Alice, Sec. 3.1).

        crop: (B, C, D, H, W); keep: (B, V). Returns (B, V, E), or (B, N, E) without keep, normalised as MONAI normalises
        what it hands to its decoder.
        """
        x = self.stage_outputs(crop, keep)[-1].flatten(1, 4)
        return F.layer_norm(x, x.shape[-1:])

    def features(self, crop: Tensor) -> list[Tensor]:
        """What Swin UNETR's decoder takes: the embedded tokens and the merged tokens of each stage, normalised.

        crop: (B, C, D, H, W). Returns volumes (B, embed_width, D/2, H/2, W/2), then twice the channels at half the size.
        """
        return [volume_of(F.layer_norm(x, x.shape[-1:])) for x in self.stage_outputs(crop, None)]
