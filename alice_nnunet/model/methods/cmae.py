"""Contrastive masked autoencoders on one page (Huang et al., TPAMI 2023; arXiv:2207.13532).

Shapes: B pairs, N tokens of a view, V visible ones, E width of the encoder, C width of the
projections.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from alice_nnunet.model.decoder import Decoder
from alice_nnunet.model.encoders.base import Encoder
from alice_nnunet.model.heads import normed_mlp
from alice_nnunet.model.losses import has_content, info_nce_loss, reconstruction_loss
from alice_nnunet.model.pretraining.crop_views import hidden_tokens
from alice_nnunet.model.pretraining.method import (
    Drawing,
    Output,
    PretrainingMethod,
    Reconstruction,
    everyones,
    follow,
    token_voxels,
    untrainable,
)
from alice_nnunet.model.pretraining.settings import MethodSettings
from alice_nnunet.model.views import (
    CropViews,
    change_intensity,
    draw_intensity,
    joined,
    shifted,
)
from alice_nnunet.settings.ranges import (
    require_not_negative,
    require_one_of,
    require_positive,
    require_share,
)


@dataclass(frozen=True)
class CMAESettings(MethodSettings):
    """The settings of CMAE.

    Raises:
        ValueError: a value is out of range.
    """

    run: ClassVar = {"ema": 0.996}  # of the momentum branch

    mask_ratio: float = 0.75  # hidden share of the online view
    normalise: str = "token"  # targets: each token, each channel of it, or none
    largest_shift: float = 0.14  # of the target view, in sides of a crop (31 of 224 pixels)
    intensity: float = 0.1  # light change of the target view: factor 1 +- it, shift +- it
    temperature: float = 0.07  # tau of L_c
    weight_contrast: float = 1.0  # lambda_c, the weight of L_c
    head_hidden: int = 4096  # width of the hidden layers of projector and predictor
    channels: int = 256  # width C of their results
    decoder_width: int = 512  # width of a token in both decoders
    decoder_depth: int = 8  # transformer blocks of the pixel decoder
    feature_depth: int = 2  # of the feature decoder
    decoder_heads: int = 16  # attention heads of each block

    def __post_init__(self):
        require_one_of(self, "normalise", ("channel", "token", "none"))
        require_positive(self, "temperature", "head_hidden", "channels")
        require_positive(self, "decoder_width", "decoder_depth", "feature_depth", "decoder_heads")
        require_not_negative(self, "weight_contrast")
        require_share(self, "largest_shift", "intensity")
        if not 0 < self.mask_ratio < 1:
            raise ValueError(f"mask_ratio must be in (0, 1), got {self.mask_ratio}")
        if self.decoder_width % self.decoder_heads:
            raise ValueError(
                "decoder_width must be a multiple of decoder_heads, "
                f"got {self.decoder_width} and {self.decoder_heads}"
            )

    @property
    def compares_all_pairs(self) -> str:
        return "method cmae"


@dataclass
class ShiftedViews(CropViews):
    """Crops of which the online encoder sees the tokens in keep, and the same a little aside."""

    crop: Tensor  # (B, C, D, H, W)
    keep: Tensor  # (B, V)
    masked: Tensor  # (B, N), True where hidden
    target: Tensor  # (B, C, D, H, W), shifted by some voxels, with other intensities


class CMAE(PretrainingMethod):
    """A masked autoencoder whose visible tokens also tell which crop they are of.

    Q and K are two crops like any others: that they match is not used.
    """

    terms = ("l_r", "l_c")
    compared = ("cls",)
    hints = (
        "l_r is the reconstruction of hidden voxels: it falls from about 2",
        "l_c asks which of all crops in a step is the same: log(crops) where nothing is known",
    )

    def __init__(self, encoder: Encoder, in_channels: int, settings: CMAESettings):
        super().__init__(encoder, in_channels, settings)
        self.settings = settings
        hidden, channels = settings.head_hidden, settings.channels

        # Online branch: encoder, pixel decoder, feature decoder (Sec. 3.2)
        self.pixel_decoder = self.decoder_of(encoder, settings.decoder_depth, tokens=False)
        self.feature_decoder = self.decoder_of(encoder, settings.feature_depth, tokens=True)
        untrainable(self.feature_decoder.to_voxels)
        self.projector = normed_mlp((encoder.width, hidden, channels), norm_last=True)
        self.predictor = normed_mlp((channels, hidden, channels), norm_last=True)

        # Target branch: momentum encoder and projector
        self.target_encoder = copy.deepcopy(encoder)
        self.target_projector = copy.deepcopy(self.projector)
        untrainable(*self.targets())
        if settings.weight_contrast == 0:
            untrainable(self.feature_decoder, self.projector, self.predictor)

    def decoder_of(self, encoder: Encoder, depth: int, tokens: bool) -> Decoder:
        """A light transformer over all tokens."""
        return Decoder(
            encoder_width=encoder.width,
            grid=encoder.grid,
            voxels=token_voxels(encoder.unit, self.in_channels),
            width=self.settings.decoder_width,
            depth=depth,
            heads=self.settings.decoder_heads,
            tokens=tokens,
        )

    @property
    def weights(self) -> dict[str, float]:
        return {"l_r": 1.0, "l_c": self.settings.weight_contrast}

    def make_views(
        self, crops: Tensor, drawing: Drawing, vectors: Tensor | None = None
    ) -> ShiftedViews:
        """The masked view, and the intact one after "pixel shift" (Sec. 3.3)."""
        settings = self.settings
        own = drawing.own(len(crops))
        number = drawing.whole(len(crops))
        generator = drawing.generator

        keep, masked = hidden_tokens(crops, drawing, self.encoder.grid, settings.mask_ratio)
        uniform = torch.rand(number, 3, generator=generator, device=generator.device) * 2 - 1
        factor, shift = draw_intensity(number, settings.intensity, generator)

        target = shifted(crops, settings.largest_shift * uniform[own])
        target = change_intensity(target, factor[own], shift[own], drawing.windowed)
        return ShiftedViews(crops, keep, masked, target)

    def forward(self, query: ShiftedViews, key: ShiftedViews, shared: None = None) -> Output:
        """L = L_r + lambda_c L_c."""
        settings = self.settings
        views = joined(query, key)
        content = has_content(views.crop, self.unit)

        # L_r, reconstruction: visible tokens, pixel decoder
        visible = self.encoder(views.crop, views.keep)  # (2 B, V, E)
        predicted, _ = self.pixel_decoder(visible, views.keep)
        losses = {
            "l_r": reconstruction_loss(
                predicted, views.crop, views.masked, self.unit, settings.normalise
            )
        }

        # L_c, contrast: feature decoder and mean over tokens, against the momentum branch
        compared: dict[str, Tensor] = {}
        if settings.weight_contrast:
            _, features = self.feature_decoder(visible, views.keep)  # (2 B, N, E)
            y_s = self.predictor(self.projector(features.mean(1)))  # (2 B, C)
            with torch.no_grad():
                y_t = self.target_projector(self.target_encoder(views.target).mean(1))
            keys, first = everyones(y_t, self.training)
            losses["l_c"] = info_nce_loss(y_s, y_t, settings.temperature, keys, first)
            compared["cls"] = y_t

        of_query = predicted[: len(query)].detach()
        return self.output(
            losses,
            content=content,
            compared=compared,
            ranked={"V": visible},
            reconstruction=Reconstruction(query.crop, query.masked, of_query, settings.normalise),
        )

    def recomputed(self) -> list[nn.Module]:
        return [self.encoder, self.pixel_decoder, self.feature_decoder]

    def targets(self) -> list[nn.Module]:
        return [self.target_encoder, self.target_projector]

    @torch.no_grad()
    def after_step(
        self, momentum: float, running: Mapping[str, Tensor], remembered: Tensor | None = None
    ) -> None:
        """theta_t = mu theta_t + (1 - mu) theta_s."""
        follow(self.targets(), [self.encoder, self.projector], momentum)
