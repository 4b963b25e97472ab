"""DINO on one page (Caron et al., ICCV 2021; arXiv:2104.14294).

Shapes: B pairs, N tokens of a view, E width of the encoder, K prototypes.
"""

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from alice_nnunet.model.encoders.base import Encoder
from alice_nnunet.model.heads import DinoHead, prototypes_at_rest
from alice_nnunet.model.initialisation import truncated_normal
from alice_nnunet.model.losses import dino_loss, has_content
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
from alice_nnunet.settings.ranges import require_positive, require_share


@dataclass(frozen=True)
class DINOSettings(MethodSettings):
    """The settings of DINO.

    Raises:
        ValueError: a value is out of range.
    """

    run: ClassVar = {"ema": 0.996}  # lambda of Sec. 3.1, with a cosine schedule to 1

    student_temperature: float = 0.1  # tau_s of Eq. 1
    teacher_temperature: float = 0.04  # tau_t
    center_momentum: float = 0.9  # m of Eq. 4
    prototypes: int = 4096  # K, dimensions of the softmax
    head_hidden: int = 2048  # width of the hidden layers of the head (Sec. 3.1)
    head_bottleneck: int = 256  # width of their result, l2-normalised
    # Share of the run in which the prototypes stay as they were drawn: 1 of 100 epochs in the
    # authors' code, which says to take more where the loss does not fall.
    rest_prototypes: float = 0.01
    flips: bool = False  # mirror views at random along each axis

    def __post_init__(self):
        require_positive(self, "student_temperature", "teacher_temperature")
        require_positive(self, "prototypes", "head_hidden", "head_bottleneck")
        require_share(self, "center_momentum", "rest_prototypes")


class DINO(PretrainingMethod):
    """A student names the prototypes that its moving average sees in another view of the crop.

    Q and K are two crops like any others: that they match is not used.
    """

    terms = ("l_dino",)
    compared = ("cls",)
    hints = (
        "l_dino is the cross-entropy of K prototypes: it starts below log(K), rises to it while "
        "the center learns what all crops share, and falls slowly from there; where it stays "
        "there, the teacher says the same of all crops: try a lower teacher_temperature, a lower "
        "lr or a larger rest_prototypes",
    )
    center: Tensor

    def __init__(self, encoder: Encoder, in_channels: int, settings: DINOSettings):
        super().__init__(encoder, in_channels, settings)
        self.settings = settings

        # g = h(f): backbone and head (Sec. 3.1, "Network architecture")
        self.head = DinoHead(
            encoder.width, settings.head_hidden, settings.head_bottleneck, settings.prototypes
        )
        self.head.apply(truncated_normal)

        # Teacher, a moving average of the student
        self.target_encoder = copy.deepcopy(encoder)
        self.target_head = copy.deepcopy(self.head)
        untrainable(*self.targets())
        self.register_buffer("center", torch.zeros(settings.prototypes))

    @property
    def weights(self) -> dict[str, float]:
        return {"l_dino": 1.0}

    def make_views(
        self, crops: Tensor, drawing: Drawing, vectors: Tensor | None = None
    ) -> TwoViews:
        """The two global views x1 and x2."""
        return two_views(crops, drawing, self.settings.flips)

    def forward(self, query: TwoViews, key: TwoViews, shared: None = None) -> Output:
        """Eq. 3 for the two views (Algorithm 1)."""
        views = joined(query, key)

        tokens = self.encoder(views.first)  # (2 B, N, E)
        s1 = self.head(tokens.mean(1))  # (2 B, K)
        s2 = self.head(self.encoder(views.second).mean(1))
        with torch.no_grad():
            pooled = self.target_encoder(views.first).mean(1)
            t1 = self.target_head(pooled).float()
            t2 = self.target_head(self.target_encoder(views.second).mean(1)).float()

        loss = (self.distance(s1, t2) + self.distance(s2, t1)) / 2  # H(t2, s1), H(t1, s2)
        return self.output(
            {"l_dino": loss},
            content=has_content(views.first, self.unit),
            compared={"cls": pooled},
            ranked={"V": tokens},
            running={"teacher": torch.cat([t1, t2]).mean(0)},
        )

    def distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        """H(P_t, P_s) of Eqs. 1 and 2, the teacher centered (Sec. 3.1, "Avoiding collapse")."""
        settings = self.settings
        centered = teacher - self.center
        return dino_loss(
            student, centered, settings.student_temperature, settings.teacher_temperature
        )

    def resting(self, progress: float) -> Iterable[nn.Parameter]:
        return prototypes_at_rest(self.head, progress, self.settings.rest_prototypes)

    def targets(self) -> list[nn.Module]:
        return [self.target_encoder, self.target_head]

    @torch.no_grad()
    def after_step(
        self, momentum: float, running: Mapping[str, Tensor], remembered: Tensor | None = None
    ) -> None:
        """theta_t = lambda theta_t + (1 - lambda) theta_s, and the center (Eq. 4)."""
        follow(self.targets(), [self.encoder, self.head], momentum)
        self.center.lerp_(running["teacher"].float(), 1 - self.settings.center_momentum)
