"""BYOL on one page (Grill et al., NeurIPS 2020; arXiv:2006.07733).

Shapes: B pairs, N tokens of a view, E width of the encoder, C width of the projections.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from alice_nnunet.model.encoders.base import Encoder
from alice_nnunet.model.heads import normed_mlp
from alice_nnunet.model.losses import cosine_loss, has_content
from alice_nnunet.model.pretraining.crop_views import TwoViews, two_views
from alice_nnunet.model.pretraining.method import (
    Drawing,
    Output,
    PretrainingMethod,
    follow,
    untrainable,
)
from alice_nnunet.model.pretraining.settings import MethodSettings
from alice_nnunet.model.views import joined
from alice_nnunet.settings.ranges import require_positive


@dataclass(frozen=True)
class BYOLSettings(MethodSettings):
    """The settings of BYOL.

    Raises:
        ValueError: a value is out of range.
    """

    run: ClassVar = {"ema": 0.996}  # tau_base of Sec. 3.3, with a cosine schedule to 1

    head_hidden: int = 4096  # width of the hidden layer of projector and predictor (Sec. 3.3)
    channels: int = 256  # width C of their results
    flips: bool = False  # mirror views at random along each axis

    def __post_init__(self):
        require_positive(self, "head_hidden", "channels")

    @property
    def compares_all_pairs(self) -> str:
        return "method byol (its batch norm)"


class BYOL(PretrainingMethod):
    """One view of a crop predicts what a moving average of the network says of another view.

    Q and K are two crops like any others: that they match is not used.
    """

    terms = ("l_byol",)
    compared = ("cls",)
    hints = (
        "l_byol is 4 - 4 cos between what one view predicts and what the target says of another: "
        "0 at best, and 0 where all crops look alike (watch the spread)",
    )

    def __init__(self, encoder: Encoder, in_channels: int, settings: BYOLSettings):
        super().__init__(encoder, in_channels, settings)
        self.settings = settings
        hidden, channels = settings.head_hidden, settings.channels

        # Online network: f_theta, g_theta, q_theta (Fig. 2)
        self.projector = normed_mlp((encoder.width, hidden, channels), norm_last=False)
        self.predictor = normed_mlp((channels, hidden, channels), norm_last=False)

        # Target network: f_xi, g_xi
        self.target_encoder = copy.deepcopy(encoder)
        self.target_projector = copy.deepcopy(self.projector)
        untrainable(*self.targets())

    @property
    def weights(self) -> dict[str, float]:
        return {"l_byol": 1.0}

    def make_views(
        self, crops: Tensor, drawing: Drawing, vectors: Tensor | None = None
    ) -> TwoViews:
        """v and v' of Sec. 3.1."""
        return two_views(crops, drawing, self.settings.flips)

    def forward(self, query: TwoViews, key: TwoViews, shared: None = None) -> Output:
        """Eq. 2, and the same with the views exchanged (Sec. 3.1)."""
        views = joined(query, key)

        tokens = self.encoder(views.first)  # (2 B, N, E)
        q = self.predictor(self.projector(tokens.mean(1)))  # q_theta(z_theta), (2 B, C)
        q_other = self.predictor(self.projector(self.encoder(views.second).mean(1)))
        with torch.no_grad():
            z = self.target_projector(self.target_encoder(views.first).mean(1))  # z_xi
            z_other = self.target_projector(self.target_encoder(views.second).mean(1))

        loss = cosine_loss(q, z_other) + cosine_loss(q_other, z)
        return self.output(
            {"l_byol": loss},
            content=has_content(views.first, self.unit),
            compared={"cls": torch.cat([z, z_other])},
            ranked={"V": tokens},
        )

    def targets(self) -> list[nn.Module]:
        return [self.target_encoder, self.target_projector]

    @torch.no_grad()
    def after_step(
        self, momentum: float, running: Mapping[str, Tensor], remembered: Tensor | None = None
    ) -> None:
        """xi = tau xi + (1 - tau) theta (Eq. 1)."""
        follow(self.targets(), [self.encoder, self.projector], momentum)
