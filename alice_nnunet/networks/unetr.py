"""UNETR (Hatamizadeh et al. 2022) around the pretrained ViT (Alice, Sec. 4.2).

Shapes: B crops, C channels, D H W voxels in (z, y, x) order, E width of a token, F feature_size.
"""

from typing import Any

from monai.networks.blocks.dynunet_block import UnetOutBlock
from monai.networks.blocks.unetr_block import UnetrBasicBlock, UnetrPrUpBlock, UnetrUpBlock
from torch import Tensor

from alice_nnunet.errors import UserError
from alice_nnunet.geometry import Triple, triple
from alice_nnunet.model.encoders.vit import ViT
from alice_nnunet.networks.fast_layers import replace_layers
from alice_nnunet.networks.input_map import InputMap
from alice_nnunet.networks.padding import pad_to
from alice_nnunet.networks.precision import SegmentationNetwork

SMALLEST_DEPTH = 3  # blocks of a ViT with features at four different depths


class UNETR(SegmentationNetwork):
    """A ViT whose features at four depths feed a convolutional decoder; one output at full size.

    It takes any patch size: a patch that is not a multiple of the token is padded with the
    window's floor, and the result is cropped again. The decoder's blocks and their defaults are
    MONAI's; with equal weights and tokens of 16 x 16 x 16 voxels the output is that of MONAI's
    UNETR. For smaller tokens the decoder enlarges less, see `strides`.

    Args:
        input_channels: channels of the image. They replace the encoder's in_channels.
        num_classes: channels of the logits.
        encoder_arguments: of the ViT, as its checkpoint holds them.
        input_map: arguments of InputMap.
        feature_size: channels F of the decoder at full resolution.
        positions: how the ViT's position embeddings differ from the checkpoint's: size, the voxels
            of the patch that they are for (z, y, x), and pitch, see move_positions. None: they are
            the checkpoint's, stretched to each patch, as plans of version 0.1 have it.

    Raises:
        UserError: the ViT has too few blocks.
    """

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        encoder_arguments: dict,
        input_map: dict,
        feature_size: int = 16,
        positions: dict | None = None,
    ):
        super().__init__()
        self.input_map = InputMap(**input_map)
        self.pitch = None if positions is None else tuple(positions["pitch"])
        arguments = {**encoder_arguments, "in_channels": input_channels}
        if positions is not None:
            arguments["crop_size"] = tuple(positions["size"])
        self.encoder = ViT(**arguments)
        depth = len(self.encoder.blocks)
        if depth < SMALLEST_DEPTH:
            raise UserError(
                f"UNETR needs a vit with a depth of at least {SMALLEST_DEPTH}, because its decoder "
                f"takes features at four depths; this encoder has depth {depth}. "
                "Pretrain one with a larger depth"
            )

        width = self.encoder.width
        f = feature_size
        common: dict[str, Any] = {"norm_name": "instance", "res_block": True}

        first, last = strides(self.encoder.unit)
        more = 2 if last == 2 else 1  # times that shallow features are doubled after the first

        self.stem = UnetrBasicBlock(3, input_channels, f, 3, 1, **common)
        self.rise2 = UnetrPrUpBlock(3, width, 2 * f, more, 3, 1, 2, conv_block=True, **common)
        self.rise4 = UnetrPrUpBlock(3, width, 4 * f, more - 1, 3, 1, 2, conv_block=True, **common)
        self.rise8 = UnetrPrUpBlock(3, width, 8 * f, 0, 3, 1, last, conv_block=True, **common)

        self.merge8 = UnetrUpBlock(3, width, 8 * f, 3, last, **common)
        self.merge4 = UnetrUpBlock(3, 8 * f, 4 * f, 3, 2, **common)
        self.merge2 = UnetrUpBlock(3, 4 * f, 2 * f, 3, 2, **common)
        self.merge1 = UnetrUpBlock(3, 2 * f, f, 3, first, **common)

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

        features = self.encoder.features(self.input_map.clamp(mapped))
        shallow, middle, deep, last = features  # (B, E, D'/16, ...) each

        # Sizes as with tokens of 16 voxels
        x = self.merge8(last, self.rise8(deep))  # (B, 8F, D'/8, ...)
        x = self.merge4(x, self.rise4(middle))  # (B, 4F, D'/4, ...)
        x = self.merge2(x, self.rise2(shallow))  # (B, 2F, D'/2, ...)
        x = self.merge1(x, self.stem(mapped))  # (B, F, D', H', W')

        return self.input_map.turn(self.out(x)[:, :, :d, :h, :w])


def strides(token: Triple) -> tuple[Triple, int]:
    """How much the decoder enlarges at its finest and at its coarsest stage; 2 between them.

    A token of 8 voxels along every axis leaves out the coarsest stage. One of 8 along some axes
    leaves out these at the finest, where nnU-Net, too, spares the axis of the fewest voxels.

    Args:
        token: voxels (z, y, x), 8 or 16 along each axis.

    Returns:
        Of the finest stage (z, y, x), and of the coarsest.
    """
    if max(token) == 8:
        return (2, 2, 2), 1
    return triple(2 if edge == 16 else 1 for edge in token), 2
