"""UNETR (Hatamizadeh et al. 2022) around the pretrained ViT, as Alice fine-tunes it (Sec. 4.2).

B batch, C channels, D H W voxels in nnU-Net's (z, y, x) order, E width of a token, F feature_size.
"""

from monai.networks.blocks.dynunet_block import UnetOutBlock
from monai.networks.blocks.unetr_block import UnetrBasicBlock, UnetrPrUpBlock, UnetrUpBlock
from torch import Tensor, nn

from alice_nnunet.model.encoders.registry import build_encoder
from alice_nnunet.networks.input_map import InputMap
from alice_nnunet.networks.fast_layers import replace_layers
from alice_nnunet.networks.padding import pad_to


class UNETR(nn.Module):
    """A ViT whose features at four depths feed a convolutional decoder; one output at full resolution.

    input_channels, num_classes: channels of the image and of the logits. encoder_arguments: the ViT's, as its
    checkpoint holds them, whose in_channels gives way to input_channels. input_map: InputMap's arguments.
    Takes any patch size: what is no multiple of the token is padded with the window's floor and cropped again.
    Decoder blocks and their defaults are MONAI's; with equal weights the output is that of MONAI's UNETR.
    """

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        encoder_arguments: dict,
        input_map: dict,
        feature_size: int = 16,
    ):
        super().__init__()
        self.input_map = InputMap(**input_map)
        self.encoder = build_encoder("vit", {**encoder_arguments, "in_channels": input_channels})
        width, f, settings = (
            self.encoder.width,
            feature_size,
            {"norm_name": "instance", "res_block": True},
        )
        self.stem = UnetrBasicBlock(3, input_channels, f, 3, 1, **settings)
        self.rise2 = UnetrPrUpBlock(3, width, 2 * f, 2, 3, 1, 2, conv_block=True, **settings)
        self.rise4 = UnetrPrUpBlock(3, width, 4 * f, 1, 3, 1, 2, conv_block=True, **settings)
        self.rise8 = UnetrPrUpBlock(3, width, 8 * f, 0, 3, 1, 2, conv_block=True, **settings)
        self.merge8 = UnetrUpBlock(3, width, 8 * f, 3, 2, **settings)
        self.merge4 = UnetrUpBlock(3, 8 * f, 4 * f, 3, 2, **settings)
        self.merge2 = UnetrUpBlock(3, 4 * f, 2 * f, 3, 2, **settings)
        self.merge1 = UnetrUpBlock(3, 2 * f, f, 3, 2, **settings)
        self.out = UnetOutBlock(3, f, num_classes)
        replace_layers(self)

    def forward(self, image: Tensor) -> Tensor:
        """image: (B, C, D, H, W), as nnU-Net's plans normalise it. Returns logits (B, num_classes, D, H, W)."""
        d, h, w = image.shape[2:]
        mapped = pad_to(self.input_map(image), self.encoder.unit)  # (B, C, D', H', W')
        shallow, middle, deep, last = self.encoder.features(
            self.input_map.clamp(mapped)
        )  # (B, E, D'/16, ...)
        x = self.merge8(last, self.rise8(deep))  # (B, 8F, D'/8, ...)
        x = self.merge4(x, self.rise4(middle))  # (B, 4F, D'/4, ...)
        x = self.merge2(x, self.rise2(shallow))  # (B, 2F, D'/2, ...)
        x = self.merge1(x, self.stem(mapped))  # (B, F, D', H', W')
        return self.input_map.turn(self.out(x)[:, :, :d, :h, :w])
