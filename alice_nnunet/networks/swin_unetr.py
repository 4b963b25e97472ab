"""Swin UNETR (Hatamizadeh et al. 2022) around the pretrained Swin, as Alice fine-tunes it (Sec. 4.2).

B batch, C channels, D H W voxels in nnU-Net's (z, y, x) order, F channels of the encoder's first stage.
"""

import torch.nn.functional as F
from monai.networks.blocks.dynunet_block import UnetOutBlock
from monai.networks.blocks.unetr_block import UnetrBasicBlock, UnetrUpBlock
from torch import Tensor, nn

from alice_nnunet.model.encoders.registry import build_encoder
from alice_nnunet.networks.input_map import InputMap
from alice_nnunet.networks.fast_layers import replace_layers
from alice_nnunet.networks.padding import pad_to


class SwinUNETR(nn.Module):
    """A Swin whose features at all scales feed a convolutional decoder; one output at full resolution.

    input_channels, num_classes: channels of the image and of the logits. encoder_arguments: Swin's, as its checkpoint
    holds them, whose in_channels gives way to input_channels. input_map: InputMap's arguments.
    Takes any patch size: what is no multiple of the unit is padded with the window's floor and cropped again.
    Decoder blocks and their defaults are MONAI's; with equal weights and four stages, and bug_compatible in
    encoder_arguments, the output is that of MONAI's SwinUNETR.
    """

    def __init__(
        self, input_channels: int, num_classes: int, encoder_arguments: dict, input_map: dict
    ):
        super().__init__()
        self.input_map = InputMap(**input_map)
        self.encoder = build_encoder("swin", {**encoder_arguments, "in_channels": input_channels})
        f, stages, settings = (
            encoder_arguments["embed_width"],
            len(self.encoder.stages),
            {"norm_name": "instance", "res_block": True},
        )
        basic = lambda channels_in, channels: UnetrBasicBlock(
            3, channels_in, channels, 3, 1, **settings
        )
        self.stem = basic(input_channels, f)
        self.skips = nn.ModuleList(basic(f * 2**i, f * 2**i) for i in range(stages - 1))
        self.bottom = basic(f * 2**stages, f * 2**stages)
        widths = [f * 2**i for i in range(stages, -1, -1)] + [f]
        self.rises = nn.ModuleList(
            UnetrUpBlock(3, wide, narrow, 3, 2, **settings)
            for wide, narrow in zip(widths, widths[1:])
        )
        self.out = UnetOutBlock(3, f, num_classes)
        replace_layers(self)

    def forward(self, image: Tensor) -> Tensor:
        """image: (B, C, D, H, W), as nnU-Net's plans normalise it. Returns logits (B, num_classes, D, H, W)."""
        d, h, w = image.shape[2:]
        mapped = pad_to(self.input_map(image), self.encoder.unit)  # (B, C, D', H', W')
        if tuple(mapped.shape[2:]) == self.encoder.unit:
            mapped = F.pad(mapped, (0, mapped.shape[4]))  # instance norm needs two tokens
        *shallow, deep, last = self.encoder.features(
            self.input_map.clamp(mapped)
        )  # (B, F, D'/2, ...), (B, 2F, D'/4, ...)
        skips = [self.stem(mapped), *(block(x) for block, x in zip(self.skips, shallow)), deep]
        x = self.bottom(last)
        for rise in self.rises:
            x = rise(x, skips.pop())  # half the channels, twice the size
        return self.input_map.turn(self.out(x)[:, :, :d, :h, :w])
