"""SemMAE on one page (Li et al., NeurIPS 2022; arXiv:2206.10207).

Shapes: B pairs, N tokens of a crop, V visible ones, E width of the encoder, P parts.
"""

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alice_nnunet.model.decoder import Decoder
from alice_nnunet.model.encoders.base import Encoder
from alice_nnunet.model.losses import has_content, reconstruction_loss
from alice_nnunet.model.pretraining.method import (
    Drawing,
    Output,
    PretrainingMethod,
    Reconstruction,
    follow,
    token_voxels,
    untrainable,
)
from alice_nnunet.model.pretraining.settings import MethodSettings
from alice_nnunet.model.tokens import masked_from
from alice_nnunet.model.views import CropViews, joined
from alice_nnunet.settings.ranges import require_one_of, require_positive


@dataclass(frozen=True)
class SemMAESettings(MethodSettings):
    """The settings of SemMAE.

    Raises:
        ValueError: a value is out of range.
    """

    run: ClassVar = {"ema": 0.996}  # of the encoder whose tokens are grouped into parts

    mask_ratio: float = 0.75  # hidden share of a crop
    parts: int = 6  # P, semantic parts of a crop (Sec. 3.1)
    sharpness: float = 0.1  # temperature of a token's belonging to parts
    hardening: float = 2.0  # gamma: whole parts are hidden by (share of the run done) ** gamma
    normalise: str = "token"  # targets: each token, each channel of it, or none
    decoder_width: int = 512  # width of a token in the decoder
    decoder_depth: int = 8  # its transformer blocks
    decoder_heads: int = 16  # attention heads of each block

    def __post_init__(self):
        require_one_of(self, "normalise", ("channel", "token", "none"))
        require_positive(self, "sharpness", "hardening")
        require_positive(self, "decoder_width", "decoder_depth", "decoder_heads")
        if self.parts < 2:
            raise ValueError(f"parts must be at least 2, got {self.parts}")
        if not 0 < self.mask_ratio < 1:
            raise ValueError(f"mask_ratio must be in (0, 1), got {self.mask_ratio}")
        if self.decoder_width % self.decoder_heads:
            raise ValueError(
                "decoder_width must be a multiple of decoder_heads, "
                f"got {self.decoder_width} and {self.decoder_heads}"
            )

    @classmethod
    def refusal(cls, encoder: str, arguments: dict[str, Any]) -> str | None:
        if encoder == "vit":
            return None
        return (
            "it groups the tokens of a transformer whose tokens all see each other; those of "
            f"{encoder} see their windows alone. Use -encoder vit (the paper, too, has no SemMAE "
            "for Swin)"
        )


@dataclass
class NumberedCrops(CropViews):
    """Crops, and the numbers that decide what of them is hidden once their parts are known."""

    crop: Tensor  # (B, C, D, H, W)
    of_tokens: Tensor  # (B, N), in [0, 1)
    of_parts: Tensor  # (B, P), in [0, 1)
    hardness: Tensor  # (B,), alpha: 0 hides a share of each part, 1 whole parts


class SemMAE(PretrainingMethod):
    """A masked autoencoder that hides parts of a body: first a share of each, at last whole ones.

    Q and K are two crops like any others: that they match is not used.
    """

    terms = ("l_r", "l_part")
    hints = (
        "l_r is the reconstruction of hidden voxels: it falls from about 2, and may rise again as "
        "whole parts are hidden",
        "l_part is how badly P parts of a crop stand for its tokens; it trains the parts alone",
    )

    def __init__(self, encoder: Encoder, in_channels: int, settings: SemMAESettings):
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

        # Part learning (Sec. 3.1): embeddings of parts, and the encoder whose tokens they group
        self.part_embeddings = nn.Parameter(torch.randn(settings.parts, encoder.width))
        self.target_encoder = copy.deepcopy(encoder)
        untrainable(self.target_encoder)

    @property
    def weights(self) -> dict[str, float]:
        return {"l_r": 1.0, "l_part": 1.0}

    def make_views(
        self, crops: Tensor, drawing: Drawing, vectors: Tensor | None = None
    ) -> NumberedCrops:
        """Draw the numbers that masks are made of."""
        own = drawing.own(len(crops))
        number = drawing.whole(len(crops))
        generator = drawing.generator
        tokens = math.prod(self.encoder.grid)

        of_tokens = torch.rand(number, tokens, generator=generator, device=generator.device)
        of_parts = torch.rand(
            number, self.settings.parts, generator=generator, device=generator.device
        )
        alpha = drawing.progress**self.settings.hardening
        return NumberedCrops(
            crops,
            of_tokens[own].to(crops.device, non_blocking=True),
            of_parts[own].to(crops.device, non_blocking=True),
            torch.full((len(crops),), alpha).to(crops.device, non_blocking=True),
        )

    def forward(self, query: NumberedCrops, key: NumberedCrops, shared: None = None) -> Output:
        """Find the parts of a crop, hide by them, reconstruct (Secs. 3.1 and 3.2)."""
        settings = self.settings
        views = joined(query, key)

        # Semantic part learning
        belonging, losses_of_parts = self.parts_of(views.crop)  # (2 B, N, P)

        # Semantic-guided masking
        tokens = belonging.shape[1]
        visible = max(1, round(tokens * (1 - settings.mask_ratio)))
        order = masking_order(belonging.argmax(-1), views, tokens - visible)  # (2 B, N)
        keep = order.argsort(1)[:, :visible]
        masked = masked_from(keep, tokens)

        # Masked autoencoder
        encoded = self.encoder(views.crop, keep)  # (2 B, V, E)
        predicted, _ = self.decoder(encoded, keep)  # (2 B, N, voxels)
        loss = reconstruction_loss(predicted, views.crop, masked, self.unit, settings.normalise)

        pairs = len(query)
        return self.output(
            {"l_r": loss, "l_part": losses_of_parts},
            content=has_content(views.crop, self.unit),
            ranked={"V": encoded},
            reconstruction=Reconstruction(
                query.crop, masked[:pairs], predicted[:pairs].detach(), settings.normalise
            ),
        )

    def parts_of(self, crop: Tensor) -> tuple[Tensor, Tensor]:
        """To which parts tokens belong, and how badly the parts stand for the tokens.

        Each part has an embedding that tokens are compared with. The mean of what belongs to it in
        a crop then stands for its tokens there.

        Args:
            crop: (2 B, C, D, H, W).

        Returns:
            (2 B, N, P) shares, and the loss.
        """
        with torch.no_grad():
            tokens = self.target_encoder(crop).float()  # (2 B, N, E)
            tokens = F.normalize(tokens - tokens.mean(1, keepdim=True), dim=-1)

        parts = F.normalize(self.part_embeddings.float(), dim=-1)
        belonging = (tokens @ parts.T / self.settings.sharpness).softmax(-1)  # (2 B, N, P)

        shares = belonging / belonging.sum(1, keepdim=True).clamp(min=1e-6)
        means = shares.transpose(1, 2) @ tokens  # (2 B, P, E)
        stood_for = belonging @ means  # (2 B, N, E)
        return belonging.detach(), (tokens - stood_for).square().sum(-1).mean()

    def recomputed(self) -> list[nn.Module]:
        return [self.encoder, self.decoder]

    @torch.no_grad()
    def after_step(
        self, momentum: float, running: Mapping[str, Tensor], remembered: Tensor | None = None
    ) -> None:
        """The encoder whose tokens are grouped follows the one that is trained."""
        follow([self.target_encoder], [self.encoder], momentum)


def masking_order(part: Tensor, views: NumberedCrops, hidden: int) -> Tensor:
    """In which order tokens are hidden: those with the highest values first (Sec. 3.2).

    With hardness 0 each part loses the same share, with 1 whole parts are lost, one after the
    other. In between, the numbers of tokens that a part loses are mixed.

    Args:
        part: (B, N), which part each token belongs to.
        views: the numbers that were drawn.
        hidden: how many tokens are hidden.

    Returns:
        (B, N).
    """
    same = part[:, :, None] == part[:, None, :]  # (B, N, N)
    before = views.of_tokens[:, None, :] > views.of_tokens[:, :, None]
    place = (same & before).sum(-1)  # (B, N), of a token in its part, from 0
    size = same.sum(-1)  # of its part

    of_part = views.of_parts.gather(1, part)  # (B, N)
    earlier = (of_part[:, None, :] > of_part[:, :, None]).sum(-1)  # tokens of parts lost before it
    whole = (hidden - earlier).clamp(min=0).minimum(size)
    share = size * hidden / part.shape[1]

    hardness = views.hardness[:, None]
    lost = (1 - hardness) * share + hardness * whole  # by a token's part
    return lost - place
