"""Swin UNETR (Hatamizadeh et al. 2022) around the pretrained Swin (Alice, Sec. 4.2).

Shapes: B crops, C channels, D H W voxels in (z, y, x) order, F channels of the encoder's first
stage.
"""

from itertools import pairwise
from typing import Any

import torch.nn.functional as F
from monai.networks.blocks.dynunet_block import UnetOutBlock
from monai.networks.blocks.unetr_block import UnetrBasicBlock, UnetrUpBlock
from torch import Tensor, nn

from alice_nnunet.model.encoders.swin import Swin
from alice_nnunet.networks.fast_layers import replace_layers
from alice_nnunet.networks.input_map import InputMap
from alice_nnunet.networks.padding import pad_to
from alice_nnunet.networks.precision import SegmentationNetwork


class SwinUNETR(SegmentationNetwork):
    """A Swin whose features at all scales feed a convolutional decoder; one output at full size.

    It takes any patch size: a patch that is not a multiple of the unit is padded with the window's
    floor, and the result is cropped again. The decoder's blocks and their defaults are MONAI's.
    With equal weights, four stages and bug_compatible in encoder_arguments, the output is that of
    MONAI's SwinUNETR.

    Args:
        input_channels: channels of the image. They replace the encoder's in_channels.
        num_classes: channels of the logits.
        encoder_arguments: of the Swin, as its checkpoint holds them.
        input_map: arguments of InputMap.
    """

    def __init__(
        self, input_channels: int, num_classes: int, encoder_arguments: dict, input_map: dict
    ):
        super().__init__()
        self.input_map = InputMap(**input_map)
        self.encoder = Swin(**{**encoder_arguments, "in_channels": input_channels})

        f = encoder_arguments["embed_width"]
        stages = len(self.encoder.stages)
        common: dict[str, Any] = {"norm_name": "instance", "res_block": True}

        self.stem = UnetrBasicBlock(3, input_channels, f, 3, 1, **common)
        self.skips = nn.ModuleList(
            UnetrBasicBlock(3, f * 2**stage, f * 2**stage, 3, 1, **common)
            for stage in range(stages - 1)
        )
        deepest = f * 2**stages
        self.bottom = UnetrBasicBlock(3, deepest, deepest, 3, 1, **common)

        widths = [f * 2**stage for stage in range(stages, -1, -1)]  # from the deepest to f
        widths.append(f)  # at full resolution
        self.rises = nn.ModuleList(
            UnetrUpBlock(3, wide, narrow, 3, 2, **common) for wide, narrow in pairwise(widths)
        )

        self.out = UnetOutBlock(3, f, num_classes)
        replace_layers(self)

    def segment(self, image: Tensor) -> Tensor:
        """Segment an image.

        Args:
            image: (B, C, D, H, W), as nnU-Net's plans normalise it.

        Returns:
            Logits (B, num_classes, D, H, W).
        """
        d, h, w = image.shape[2:]
        mapped = pad_to(self.input_map(image), self.encoder.unit)  # (B, C, D', H', W')
        if tuple(mapped.shape[2:]) == self.encoder.unit:
            mapped = F.pad(mapped, (0, mapped.shape[4]))  # instance norm needs two tokens

        # Features: (B, F, D'/2, ...), (B, 2F, D'/4, ...), and so on
        *shallow, deep, last = self.encoder.features(self.input_map.clamp(mapped))
        skips = [self.stem(mapped)]
        skips += [block(features) for block, features in zip(self.skips, shallow)]
        skips.append(deep)

        x = self.bottom(last)
        for rise, skip in zip(self.rises, reversed(skips)):
            x = rise(x, skip)  # half the channels, twice the size

        return self.input_map.turn(self.out(x)[:, :, :d, :h, :w])
