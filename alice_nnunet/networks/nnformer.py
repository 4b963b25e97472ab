"""nnFormer (Zhou et al. 2021) around the pretrained encoder (Alice, Sec. 4.2).

Shapes: B crops, C channels, D H W voxels in (z, y, x) order.
"""

from torch import Tensor, nn

from alice_nnunet.errors import UserError
from alice_nnunet.model.encoders.nnformer import TOKEN, NnFormer
from alice_nnunet.model.encoders.stage import CrossStage
from alice_nnunet.model.encoders.units import block_of, volume_of
from alice_nnunet.model.initialisation import xavier_uniform
from alice_nnunet.networks.input_map import InputMap
from alice_nnunet.networks.padding import pad_to
from alice_nnunet.networks.precision import SegmentationNetwork


class Expand(nn.Module):
    """Layer norm and a transposed convolution: half the channels on twice the grid (nnFormer)."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.ConvTranspose3d(width, width // 2, 2, 2)

    def forward(self, blocks: Tensor) -> Tensor:
        """(B, 1, D, H, W, C) -> (B, 1, 2D, 2H, 2W, C / 2)."""
        return block_of(self.up(volume_of(self.norm(blocks))))


class NnFormerNet(SegmentationNetwork):
    """A symmetric decoder whose tokens query those of the encoder, with an output at each scale.

    The decoder's stages have the depths, heads and windows of the encoder's. It takes any patch
    size: a patch that is not a multiple of the unit is padded with the window's floor, and the
    result is cropped again.

    Args:
        input_channels: channels of the image. They replace the encoder's in_channels.
        num_classes: channels of the logits.
        encoder_arguments: of the NnFormer, as its checkpoint holds them.
        input_map: arguments of InputMap.

    Attributes:
        deep_supervision: whether forward returns the coarser outputs too. It may change at any
            time; the heads for these outputs always exist.

    Raises:
        UserError: the encoder has only one stage.
    """

    def __init__(
        self, input_channels: int, num_classes: int, encoder_arguments: dict, input_map: dict
    ):
        super().__init__()
        self.deep_supervision = False
        self.input_map = InputMap(**input_map)
        self.encoder = NnFormer(**{**encoder_arguments, "in_channels": input_channels})

        tables = self.encoder.tables
        if len(tables) < 2:
            raise UserError(
                "nnFormer needs an encoder of at least two stages, because its decoder begins one "
                "stage above the last; this encoder has one. Pretrain one with more stages"
            )
        widths = [encoder_arguments["embed_width"] * 2**stage for stage in range(len(tables))]
        depths = encoder_arguments["depths"]
        heads = encoder_arguments["heads"]

        # One value for each stage of the decoder, finest first. norms are of the skip connections,
        # expands lead into the stage from below.
        self.norms = nn.ModuleList(nn.LayerNorm(width) for width in widths[:-1])
        self.expands = nn.ModuleList(Expand(width) for width in widths[1:])
        self.stages = nn.ModuleList(
            CrossStage(*settings) for settings in zip(widths[:-1], depths, heads, tables)
        )
        self.heads = nn.ModuleList(
            nn.ConvTranspose3d(width, num_classes, TOKEN, TOKEN) for width in widths[:-1]
        )

        self.expands.apply(xavier_uniform)
        self.stages.apply(xavier_uniform)

    def segment(self, image: Tensor) -> Tensor | list[Tensor]:
        """Segment an image.

        Args:
            image: (B, C, D, H, W), as nnU-Net's plans normalise it.

        Returns:
            Logits (B, num_classes, D, H, W). With deep supervision a list of these at full, half,
            quarter ... resolution, in the rounded sizes that nnU-Net gives its labels.
        """
        mapped = pad_to(self.input_map(image), self.encoder.unit)  # (B, C, D', H', W')
        features = self.encoder.features(self.input_map.clamp(mapped))
        *skips, x = (block_of(volume) for volume in features)

        logits: list[Tensor] = []  # finest first
        for level in reversed(range(len(skips))):
            x = self.stages[level](self.expands[level](x), self.norms[level](skips[level]))
            if level == 0 or self.deep_supervision:
                size = [round(length / 2**level) for length in image.shape[2:]]
                logits.insert(0, self.output(level, x, size))
        return logits if self.deep_supervision else logits[0]

    def output(self, level: int, blocks: Tensor, size: list[int]) -> Tensor:
        """Logits of one scale.

        Args:
            level: number of the scale, 0 for full resolution.
            blocks: (B, 1, d, h, w, C) tokens.
            size: voxels to keep (z, y, x).

        Returns:
            (B, num_classes, *size).
        """
        d, h, w = size
        logits = self.heads[level](volume_of(blocks))[:, :, :d, :h, :w]
        return self.input_map.turn(logits)
