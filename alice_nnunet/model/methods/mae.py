"""Masked autoencoders on one page (He et al., CVPR 2022, Sec. 3; arXiv:2111.06377).

Zhou et al. (ISBI 2023, arXiv:2203.05573) pretrain UNETR this way on the scans of the task itself,
which is `alice-pretrain -method mae` on the dataset that is fine-tuned on.

Shapes: B pairs, N tokens of a crop, V visible ones, E width of the encoder.
"""

from dataclasses import dataclass

from torch import Tensor, nn

from alice_nnunet.geometry import Triple
from alice_nnunet.model.decoder import Decoder
from alice_nnunet.model.encoders.base import Encoder
from alice_nnunet.model.losses import has_content, reconstruction_loss
from alice_nnunet.model.pretraining.crop_views import MaskedCrops, hidden_tokens
from alice_nnunet.model.pretraining.method import (
    Drawing,
    Output,
    PretrainingMethod,
    Reconstruction,
    token_voxels,
)
from alice_nnunet.model.pretraining.settings import MethodSettings, block_refusal
from alice_nnunet.model.views import draw_flips, flip, joined
from alice_nnunet.settings.ranges import require_block, require_one_of, require_positive


@dataclass(frozen=True)
class MAESettings(MethodSettings):
    """The settings of MAE.

    Raises:
        ValueError: a value is out of range.
    """

    mask_ratio: float = 0.75  # hidden share of a crop (Sec. 3, "Masking")
    mask_block: Triple = (1, 1, 1)  # units hidden together, along (z, y, x); more is not in MAE
    normalise: str = "token"  # targets: each token (Sec. 3), each channel of it, or none
    reconstruct: str = "all"  # hidden tokens that count: all, or content (of more than one value)
    flips: bool = False  # mirror crops at random; MAE flips photographs left to right
    decoder_width: int = 512  # width of a token in the decoder
    decoder_depth: int = 8  # its transformer blocks (Sec. 3, "MAE decoder")
    decoder_heads: int = 16  # attention heads of each block

    def __post_init__(self):
        require_one_of(self, "normalise", ("channel", "token", "none"))
        require_one_of(self, "reconstruct", ("content", "all"))
        require_positive(self, "decoder_width", "decoder_depth", "decoder_heads")
        if not 0 < self.mask_ratio < 1:
            raise ValueError(f"mask_ratio must be in (0, 1), got {self.mask_ratio}")
        require_block(self, "mask_block")
        if self.decoder_width % self.decoder_heads:
            raise ValueError(
                "decoder_width must be a multiple of decoder_heads, "
                f"got {self.decoder_width} and {self.decoder_heads}"
            )

    def grid_refusal(self, grid: Triple) -> str | None:
        return block_refusal(self.mask_block, grid)


class MAE(PretrainingMethod):
    """An encoder of the visible tokens, and a light decoder that finds the hidden voxels.

    Q and K are two crops like any others: that they match is not used.
    """

    terms = ("l_r",)
    hints = ("l_r is the reconstruction of hidden voxels: it falls from about 2",)

    def __init__(self, encoder: Encoder, in_channels: int, settings: MAESettings):
        super().__init__(encoder, in_channels, settings)
        self.settings = settings
        self.decoder = Decoder(
            encoder_width=encoder.width,
            grid=encoder.grid,
            voxels=token_voxels(encoder.unit, in_channels),
            width=settings.decoder_width,
            depth=settings.decoder_depth,
            heads=settings.decoder_heads,
            tokens=False,
        )

    @property
    def weights(self) -> dict[str, float]:
        return {"l_r": 1.0}

    def make_views(
        self, crops: Tensor, drawing: Drawing, vectors: Tensor | None = None
    ) -> MaskedCrops:
        """Hide a random share of the tokens (Sec. 3, "Masking")."""
        settings = self.settings
        keep, masked = hidden_tokens(
            crops, drawing, self.encoder.grid, settings.mask_ratio, settings.mask_block
        )
        if settings.flips:
            drawn = draw_flips(drawing.whole(len(crops)), drawing.generator)
            crops = flip(crops, drawn[drawing.own(len(crops))])
        return MaskedCrops(crops, keep, masked)

    def forward(self, query: MaskedCrops, key: MaskedCrops, shared: None = None) -> Output:
        """Mean squared error of the hidden tokens' voxels (Sec. 3, "Reconstruction target")."""
        settings = self.settings
        views = joined(query, key)

        # "MAE encoder": visible tokens alone. "MAE decoder": all, with a mask token where hidden.
        visible = self.encoder(views.crop, views.keep)  # (2 B, V, E)
        predicted, _ = self.decoder(visible, views.keep)  # (2 B, N, voxels)

        content = has_content(views.crop, self.unit)
        counted = views.masked & content if settings.reconstruct == "content" else views.masked
        loss = reconstruction_loss(predicted, views.crop, counted, self.unit, settings.normalise)

        of_query = predicted[: len(query)].detach()
        return self.output(
            {"l_r": loss},
            content=content,
            ranked={"V": visible},
            reconstruction=Reconstruction(query.crop, query.masked, of_query, settings.normalise),
        )

    def recomputed(self) -> list[nn.Module]:
        return [self.encoder, self.decoder]
