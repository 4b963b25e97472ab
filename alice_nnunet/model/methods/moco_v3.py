"""MoCo v3 on one page (Chen et al., ICCV 2021; arXiv:2104.02057).

Shapes: B pairs, N tokens of a view, E width of the encoder, C width of the projections.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from alice_nnunet.model.encoders.base import Encoder
from alice_nnunet.model.encoders.vit import ViT
from alice_nnunet.model.heads import normed_mlp
from alice_nnunet.model.losses import has_content, info_nce_loss
from alice_nnunet.model.pretraining.crop_views import TwoViews, two_views
from alice_nnunet.model.pretraining.method import (
    Drawing,
    Output,
    PretrainingMethod,
    everyones,
    follow,
    untrainable,
)
from alice_nnunet.model.pretraining.settings import MethodSettings
from alice_nnunet.model.views import joined
from alice_nnunet.settings.ranges import require_positive


@dataclass(frozen=True)
class MoCoSettings(MethodSettings):
    """The settings of MoCo v3.

    Raises:
        ValueError: a value is out of range.
    """

    run: ClassVar = {"ema": 0.99}  # m of Sec. 6.2, here with a cosine schedule to 1

    temperature: float = 0.2  # tau of Eq. 1 (Sec. 5)
    head_hidden: int = 4096  # width of the hidden layers of projector and predictor (Sec. 5)
    channels: int = 256  # width C of their results
    freeze_patches: bool = True  # vit: keep the random patch projection (Sec. 4.2)
    flips: bool = False  # mirror views at random along each axis

    def __post_init__(self):
        require_positive(self, "temperature", "head_hidden", "channels")

    @property
    def compares_all_pairs(self) -> str:
        return "method moco_v3"


class MoCoV3(PretrainingMethod):
    """Two views of a crop find each other among the views of all other crops.

    Q and K are two crops like any others: that they match is not used.
    """

    terms = ("l_ctr",)
    compared = ("cls",)
    hints = (
        "l_ctr asks which of all crops in a step is another view of the same: 4 tau log(crops) "
        "where nothing is known, near 0 at best",
    )

    def __init__(self, encoder: Encoder, in_channels: int, settings: MoCoSettings):
        super().__init__(encoder, in_channels, settings)
        self.settings = settings
        hidden, channels = settings.head_hidden, settings.channels

        # f_q: backbone, projection head of 3 layers, prediction head of 2 (Sec. 5, "MLP heads")
        self.projector = normed_mlp((encoder.width, hidden, hidden, channels), norm_last=True)
        self.predictor = normed_mlp((channels, hidden, channels), norm_last=True)

        # f_k: the same without the prediction head, moving average of f_q
        self.target_encoder = copy.deepcopy(encoder)
        self.target_projector = copy.deepcopy(self.projector)
        untrainable(*self.targets())

        if settings.freeze_patches and isinstance(encoder, ViT):
            untrainable(encoder.patch_embed)

    @property
    def weights(self) -> dict[str, float]:
        return {"l_ctr": 1.0}

    def make_views(
        self, crops: Tensor, drawing: Drawing, vectors: Tensor | None = None
    ) -> TwoViews:
        """x1 and x2 of Algorithm 1."""
        return two_views(crops, drawing, self.settings.flips)

    def forward(self, query: TwoViews, key: TwoViews, shared: None = None) -> Output:
        """Algorithm 1."""
        views = joined(query, key)

        tokens = self.encoder(views.first)  # (2 B, N, E)
        q1 = self.predictor(self.projector(tokens.mean(1)))  # (2 B, C)
        q2 = self.predictor(self.projector(self.encoder(views.second).mean(1)))
        with torch.no_grad():
            k1 = self.target_projector(self.target_encoder(views.first).mean(1))
            k2 = self.target_projector(self.target_encoder(views.second).mean(1))

        loss = self.contrast(q1, k2) + self.contrast(q2, k1)
        return self.output(
            {"l_ctr": loss},
            content=has_content(views.first, self.unit),
            compared={"cls": torch.cat([k1, k2])},
            ranked={"V": tokens},
        )

    def contrast(self, query: Tensor, key: Tensor) -> Tensor:
        """Eq. 1 among the keys of all processes, times 2 tau (Algorithm 1, ctr)."""
        temperature = self.settings.temperature
        keys, first = everyones(key, self.training)
        loss = info_nce_loss(query, key, temperature, keys, first)
        return 2 * temperature * loss

    def targets(self) -> list[nn.Module]:
        return [self.target_encoder, self.target_projector]

    @torch.no_grad()
    def after_step(
        self, momentum: float, running: Mapping[str, Tensor], remembered: Tensor | None = None
    ) -> None:
        """f_k = m f_k + (1 - m) f_q."""
        follow(self.targets(), [self.encoder, self.projector], momentum)
