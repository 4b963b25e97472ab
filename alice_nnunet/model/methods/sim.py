"""Siamese image modeling on one page (Tao et al., CVPR 2023; arXiv:2206.01204).

Shapes: B pairs, N tokens of a view, V visible ones, E width of the encoder, W width of the decoder.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alice_nnunet.model.casa import CASA
from alice_nnunet.model.encoders.base import Encoder
from alice_nnunet.model.encoders.vit import ViT
from alice_nnunet.model.heads import BatchNorm
from alice_nnunet.model.initialisation import xavier_uniform
from alice_nnunet.model.losses import has_content
from alice_nnunet.model.positions import sincos_of, sincos_positions
from alice_nnunet.model.pretraining.crop_views import hidden_tokens, strong_view
from alice_nnunet.model.pretraining.method import (
    Drawing,
    Output,
    PretrainingMethod,
    follow,
    untrainable,
)
from alice_nnunet.model.pretraining.settings import MethodSettings
from alice_nnunet.model.tokens import take_tokens
from alice_nnunet.model.transformer import Block
from alice_nnunet.model.views import CropViews, joined, token_middles
from alice_nnunet.ranks import mean_over_ranks
from alice_nnunet.settings.ranges import require_not_negative, require_one_of, require_positive

# The norms of projector and decoder. Batch norm takes what all tokens share away. Without it, at
# toy scale, the features become one: their spread falls to 0.09 (docs/results/methods.md).
NORMS: dict[str, Callable[[int], nn.Module]] = {
    "batch": partial(BatchNorm, track_running_stats=False),
    "layer": nn.LayerNorm,
}


@dataclass(frozen=True)
class SIMSettings(MethodSettings):
    """The settings of siamese image modeling.

    Raises:
        ValueError: a value is out of range.
    """

    run: ClassVar = {"ema": 0.995}  # of the target branch, with a cosine schedule to 1

    mask_ratio: float = 0.6  # hidden share of the online view (118 of 196 patches)
    weight_negative: float = 0.02  # lambda of the negative term of UniGrad
    decoder_width: int = 768  # width W of projector and decoder
    projector_depth: int = 2  # transformer blocks of the projector
    decoder_depth: int = 4  # of the decoder
    decoder_heads: int = 12  # attention heads of each block
    norm: str = "batch"  # of projector and decoder: batch, over all tokens of a step, or layer
    freeze_patches: bool = True  # vit: keep the random patch projection, as the authors' code does
    casa: bool = False  # compare what CASA gathers instead of the tokens (Alice, Table 6)
    flips: bool = False  # mirror views at random along each axis

    def __post_init__(self):
        require_positive(self, "decoder_width", "decoder_depth", "decoder_heads")
        require_not_negative(self, "projector_depth", "weight_negative")
        require_one_of(self, "norm", tuple(NORMS))
        if not 0 < self.mask_ratio < 1:
            raise ValueError(f"mask_ratio must be in (0, 1), got {self.mask_ratio}")
        if self.decoder_width % self.decoder_heads:
            raise ValueError(
                "decoder_width must be a multiple of decoder_heads, "
                f"got {self.decoder_width} and {self.decoder_heads}"
            )

    @property
    def compares_all_pairs(self) -> str:
        return "method sim (the correlation of all features)"


@dataclass
class OtherView(CropViews):
    """A masked view of each crop, another view, and where the latter's tokens lie in the former."""

    online: Tensor  # (B, C, D, H, W), x_a; the branch sees only the tokens in keep
    keep: Tensor  # (B, V)
    target: Tensor  # (B, C, D, H, W), x_b
    places: Tensor  # (B, N, 3), of the tokens of x_b: in tokens of x_a along (z, y, x), from 0


class SIM(PretrainingMethod):
    """The visible tokens of one view predict the features of another view, token by token.

    Q and K are two crops like any others: that they match is not used.
    """

    terms = ("l_sim",)
    compared = ("T",)
    hints = (
        "l_sim is the mean squared distance to what the target says of another view (about 2 at "
        "first) and a smaller term against features that are all alike",
    )

    def __init__(self, encoder: Encoder, in_channels: int, settings: SIMSettings):
        super().__init__(encoder, in_channels, settings)
        self.settings = settings
        width, heads = settings.decoder_width, settings.decoder_heads
        norm = NORMS[settings.norm]

        # Online branch: encoder, projector, decoder (Sec. 3.2, "Online branch")
        self.projector = nn.Sequential(
            nn.Linear(encoder.width, width),
            *(Block(width, heads, norm) for _ in range(settings.projector_depth)),
        )
        self.positions = nn.Parameter(sincos_positions(encoder.grid, width), requires_grad=False)
        self.enter_place = nn.Linear(2 * width, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        blocks = [Block(width, heads, norm) for _ in range(settings.decoder_depth)]
        self.decoder = nn.Sequential(*blocks)
        self.leave = nn.Linear(width, width)
        self.casa = CASA(encoder.width, width) if settings.casa else None

        parts = [self.projector, self.enter_place, self.decoder, self.leave, self.casa]
        for part in parts:
            if part is not None:
                part.apply(xavier_uniform)
        nn.init.normal_(self.mask_token, std=0.02)

        # Target branch: encoder and projector, moving averages of the online ones
        self.target_encoder = copy.deepcopy(encoder)
        self.target_projector = copy.deepcopy(self.projector)
        self.target_casa = copy.deepcopy(self.casa)
        untrainable(*self.targets())

        if settings.freeze_patches and isinstance(encoder, ViT):
            untrainable(encoder.patch_embed)

    @property
    def weights(self) -> dict[str, float]:
        return {"l_sim": 1.0}

    def make_views(
        self, crops: Tensor, drawing: Drawing, vectors: Tensor | None = None
    ) -> OtherView:
        """x_a, what of it is visible, and x_b."""
        grid = self.encoder.grid
        online, from_online = strong_view(crops, drawing, self.settings.flips)
        target, from_target = strong_view(crops, drawing, self.settings.flips)
        keep, _ = hidden_tokens(crops, drawing, grid, self.settings.mask_ratio)

        # From x_b to the crop and on to x_a, in half sizes of the crop, (x, y, z).
        across = torch.linalg.solve(from_online, from_target)  # (B, 3, 3)
        middles = token_middles(grid).to(across)  # (N, 3)
        halves = (middles @ across.transpose(1, 2)).flip(-1)  # (B, N, 3), (z, y, x)
        sides = torch.tensor(grid, device=halves.device)
        places = (halves + 1) / 2 * sides - 0.5
        return OtherView(online, keep, target, places.to(crops.device, non_blocking=True))

    def forward(self, query: OtherView, key: OtherView, shared: None = None) -> Output:
        """Predict x_b from x_a (Fig. 2)."""
        views = joined(query, key)

        # Online branch: visible tokens of x_a, and mask tokens at the places of x_b
        visible = self.encoder(views.online, views.keep)  # (2 B, V, E)
        tokens = self.projector(visible)  # (2 B, V, W)
        here = take_tokens(self.positions.expand(len(tokens), -1, -1), views.keep)
        there = self.mask_token + self.enter_place(self.place_of(views.places))  # (2 B, N, W)
        decoded = self.decoder(torch.cat([tokens + here, there.to(tokens.dtype)], 1))
        predicted = self.leave(decoded[:, tokens.shape[1] :])  # (2 B, N, W)

        # Target branch: all of x_b
        with torch.no_grad():
            target = self.target_projector(self.target_encoder(views.target))  # (2 B, N, W)

        # Alice, Table 6: what the visible tokens find in the predicted and in the true features
        if self.casa is not None and self.target_casa is not None:
            predicted = self.casa(visible, predicted)
            with torch.no_grad():
                target = self.target_casa(visible, target)

        return self.output(
            {"l_sim": self.unigrad(predicted, target)},
            content=has_content(views.online, self.unit),
            compared={"T": target},
            ranked={"V": visible},
        )

    def place_of(self, places: Tensor) -> Tensor:
        """Sines and cosines of the relative places, (B, N, 3) tokens -> (B, N, 2 W)."""
        return sincos_of(places, 2 * self.settings.decoder_width)

    def unigrad(self, predicted: Tensor, target: Tensor) -> Tensor:
        """The dense loss: near the target, and not along what all targets share (Eq. 3).

        With y the predicted features and z the target's, layer-normalised, over all tokens:
        (|y - z|^2 + lambda y^T C y) / W, where C is the mean of z z^T.
        """
        width = target.shape[-1]
        z = F.layer_norm(target.float(), (width,)).flatten(0, -2)  # (M, W)
        y = predicted.float().flatten(0, -2)

        correlation = z.T @ z / len(z)
        if self.training:
            correlation = mean_over_ranks(correlation)
        positive = (y - z).square().sum(-1).mean()
        negative = ((y @ correlation) * y).sum(-1).mean()
        return (positive + self.settings.weight_negative * negative) / width

    def targets(self) -> list[nn.Module]:
        """The modules of the target branch."""
        targets = [self.target_encoder, self.target_projector, self.target_casa]
        return [module for module in targets if module is not None]

    def sources(self) -> list[nn.Module]:
        """Those of the online branch that they follow."""
        return [m for m in (self.encoder, self.projector, self.casa) if m is not None]

    @torch.no_grad()
    def after_step(
        self, momentum: float, running: Mapping[str, Tensor], remembered: Tensor | None = None
    ) -> None:
        """The target branch follows the online one."""
        follow(self.targets(), self.sources(), momentum)
