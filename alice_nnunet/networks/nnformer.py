"""nnFormer (Zhou et al. 2021) around the pretrained encoder, as Alice fine-tunes it (Sec. 4.2).

B batch, C channels, D H W voxels in nnU-Net's (z, y, x) order, F channels of the encoder's first stage.
"""

from torch import Tensor, nn

from alice_nnunet.model.encoders.registry import build_encoder
from alice_nnunet.model.encoders.nnformer import TOKEN
from alice_nnunet.model.encoders.stage import CrossStage, init_weights
from alice_nnunet.networks.input_map import InputMap
from alice_nnunet.networks.padding import pad_to


class Expand(nn.Module):
    """Layer norm and a transposed convolution: half the channels on twice the grid (nnFormer)."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.ConvTranspose3d(width, width // 2, 2, 2)

    def forward(self, blocks: Tensor) -> Tensor:
        """(B, 1, D, H, W, C) -> (B, 1, 2D, 2H, 2W, C / 2)."""
        volume = self.up(self.norm(blocks).squeeze(1).permute(0, 4, 1, 2, 3))
        return volume.permute(0, 2, 3, 4, 1).unsqueeze(1)


class NnFormerNet(nn.Module):
    """A symmetric decoder whose tokens ask those of the encoder, with an output at each of its scales.

    input_channels, num_classes: channels of the image and of the logits. encoder_arguments: NnFormer's, as its
    checkpoint holds them, whose in_channels gives way to input_channels; depths, heads and windows serve the decoder's
    stages too. input_map: InputMap's arguments. The attribute deep_supervision says whether forward gives the coarser
    outputs too, and may be changed at any time; their heads exist in any case.
    Takes any patch size: what is no multiple of the unit is padded with the window's floor and cropped again.
    """

    def __init__(
        self, input_channels: int, num_classes: int, encoder_arguments: dict, input_map: dict
    ):
        super().__init__()
        self.input_map, self.deep_supervision = InputMap(**input_map), False
        self.encoder = build_encoder(
            "nnformer", {**encoder_arguments, "in_channels": input_channels}
        )
        tables = [stage.table for stage in self.encoder.stages]
        widths = [encoder_arguments["embed_width"] * 2**i for i in range(len(tables))]
        upper = list(zip(widths, encoder_arguments["depths"], encoder_arguments["heads"], tables))[
            :-1
        ]
        self.norms = nn.ModuleList(
            nn.LayerNorm(width) for width in widths[:-1]
        )  # of the skip connections
        self.expands = nn.ModuleList(Expand(width) for width in widths[1:])  # into each upper stage
        self.stages = nn.ModuleList(CrossStage(*settings) for settings in upper)
        self.heads = nn.ModuleList(
            nn.ConvTranspose3d(width, num_classes, TOKEN, TOKEN) for width in widths[:-1]
        )
        for module in (self.expands, self.stages):
            module.apply(init_weights)

    def forward(self, image: Tensor) -> Tensor | list[Tensor]:
        """image: (B, C, D, H, W), as nnU-Net's plans normalise it.

        Returns logits (B, num_classes, D, H, W), or with deep supervision a list of these at full, half, quarter ...
        resolution, whose sizes are the rounded ones that nnU-Net gives its labels.
        """
        mapped = pad_to(self.input_map(image), self.encoder.unit)  # (B, C, D', H', W')
        *skips, x = (
            volume.permute(0, 2, 3, 4, 1).unsqueeze(1)
            for volume in self.encoder.features(self.input_map.clamp(mapped))
        )
        logits = []  # finest first
        for level in reversed(range(len(skips))):
            x = self.stages[level](self.expands[level](x), self.norms[level](skips[level]))
            if level == 0 or self.deep_supervision:
                size = [round(n / 2**level) for n in image.shape[2:]]
                logits.insert(0, self.output(level, x, size))
        return logits if self.deep_supervision else logits[0]

    def output(self, level: int, blocks: Tensor, size: list[int]) -> Tensor:
        """Logits of one scale. blocks: (B, 1, d, h, w, C). Returns (B, num_classes, *size)."""
        d, h, w = size
        return self.input_map.turn(
            self.heads[level](blocks.squeeze(1).permute(0, 4, 1, 2, 3))[:, :, :d, :h, :w]
        )
