"""iBOT on one page (Zhou et al., ICLR 2022; arXiv:2111.07832).

Shapes: B pairs, N tokens of a view, E width of the encoder, K prototypes.
"""

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from alice_nnunet.model.casa import CASA
from alice_nnunet.model.encoders.base import Encoder
from alice_nnunet.model.heads import DinoHead, prototypes_at_rest
from alice_nnunet.model.initialisation import truncated_normal, xavier_uniform
from alice_nnunet.model.losses import dino_losses, has_content, masked_mean
from alice_nnunet.model.pretraining.crop_views import strong_view, tokens_of_ratio
from alice_nnunet.model.pretraining.method import (
    Drawing,
    Output,
    PretrainingMethod,
    follow,
    partners_of,
    token_voxels,
    untrainable,
)
from alice_nnunet.model.pretraining.settings import MethodSettings
from alice_nnunet.model.tokens import hide
from alice_nnunet.model.views import CropViews, joined
from alice_nnunet.settings.ranges import require_not_negative, require_positive, require_share

MASKED_VIEWS = 0.5  # chance that something of a view is hidden (Sec. 4.1, "random MIM")


@dataclass(frozen=True)
class IBOTSettings(MethodSettings):
    """The settings of iBOT.

    Raises:
        ValueError: a value is out of range.
    """

    run: ClassVar = {"ema": 0.996}  # of the teacher, with a cosine schedule to 1

    least_masked: float = 0.1  # hidden share of a masked view: at least (Sec. 4.1)
    most_masked: float = 0.5  # and at most
    student_temperature: float = 0.1  # tau_s
    teacher_temperature: float = 0.04  # tau_t of both terms
    center_momentum: float = 0.9  # of both centers
    prototypes: int = 8192  # K, dimensions of the softmax (Sec. 4.1)
    head_hidden: int = 2048  # width of the hidden layers of the head
    head_bottleneck: int = 256  # width of their result, l2-normalised
    weight_dv: float = 0.0  # of l_dv between Q and K (Alice, Table 5)
    casa: bool = False  # compare what CASA gathers instead of the tokens (Alice, Table 6)
    # Share of the run in which the prototypes stay as they were drawn: 1 of 100 epochs in the
    # authors' code, which says to take more where the loss does not fall.
    rest_prototypes: float = 0.01
    flips: bool = False  # mirror views at random along each axis

    def __post_init__(self):
        require_positive(self, "student_temperature", "teacher_temperature")
        require_positive(self, "prototypes", "head_hidden", "head_bottleneck")
        require_share(self, "center_momentum", "least_masked", "most_masked", "rest_prototypes")
        require_not_negative(self, "weight_dv")
        if not 0 < self.least_masked <= self.most_masked < 1:
            raise ValueError(
                "least_masked must be positive and at most most_masked, which must be under 1, got "
                f"{self.least_masked} and {self.most_masked}"
            )


@dataclass
class MaskedViews(CropViews):
    """Two views of each crop, and what of them is hidden from the student."""

    u: Tensor  # (B, C, D, H, W)
    v: Tensor  # (B, C, D, H, W)
    masked_u: Tensor  # (B, N), True where hidden
    masked_v: Tensor  # (B, N)


class IBOT(PretrainingMethod):
    """A student names the prototypes that its moving average sees: of hidden tokens, and of views.

    Q and K are two crops like any others, but with weight_dv, which compares them.
    """

    compared = ("cls", "T")
    center_cls: Tensor
    center_mim: Tensor

    def __init__(self, encoder: Encoder, in_channels: int, settings: IBOTSettings):
        super().__init__(encoder, in_channels, settings)
        self.settings = settings
        self.terms = ("l_mim", "l_cls", "l_dv") if settings.weight_dv else ("l_mim", "l_cls")
        self.hints = (
            "l_mim and l_cls are cross-entropies of K prototypes, of hidden tokens and of views: "
            "they rise to log(K) (l_mim to the share of masked views of it) while the centers "
            "learn what all crops share; where they stay there, the teacher says the same of all "
            "crops: try a lower teacher_temperature, a lower lr or a larger rest_prototypes",
        )

        # The mask token e_[MASK] stands for voxels: so any encoder can be given it (Sec. 3.1).
        self.mask_token = nn.Parameter(torch.zeros(token_voxels(encoder.unit, in_channels)))

        # h of tokens and views alike (Sec. 3.2, "shared head")
        self.head = DinoHead(
            encoder.width, settings.head_hidden, settings.head_bottleneck, settings.prototypes
        )
        self.head.apply(truncated_normal)
        self.casa = CASA(encoder.width, settings.head_bottleneck) if settings.casa else None
        if self.casa is not None:
            self.casa.apply(xavier_uniform)

        # The teacher, a moving average of the student
        self.target_encoder = copy.deepcopy(encoder)
        self.target_head = copy.deepcopy(self.head)
        self.target_casa = copy.deepcopy(self.casa)
        untrainable(*self.targets())
        for name in ("cls", "mim"):
            self.register_buffer(f"center_{name}", torch.zeros(settings.prototypes))

    @property
    def weights(self) -> dict[str, float]:
        return {"l_mim": 1.0, "l_cls": 1.0, "l_dv": self.settings.weight_dv}

    def make_views(
        self, crops: Tensor, drawing: Drawing, vectors: Tensor | None = None
    ) -> MaskedViews:
        """u, v and their masks (Sec. 3.1; Sec. 4.1, "random MIM")."""
        settings = self.settings
        u, _ = strong_view(crops, drawing, settings.flips)
        v, _ = strong_view(crops, drawing, settings.flips)

        masks = []
        for _ in range(2):
            generator = drawing.generator
            number = drawing.whole(len(crops))
            chance, share = torch.rand(2, number, generator=generator, device=generator.device)
            span = settings.most_masked - settings.least_masked
            ratios = (settings.least_masked + span * share) * (chance < MASKED_VIEWS)
            masks.append(tokens_of_ratio(crops, drawing, self.encoder.grid, ratios))
        return MaskedViews(u, v, *masks)

    def forward(self, query: MaskedViews, key: MaskedViews, shared: None = None) -> Output:
        """Eqs. 1 and 2 (Algorithm 1), and Alice's l_dv between Q and K where it is wanted."""
        views = joined(query, key)

        # Student: masked views. Teacher: intact ones.
        x_u, s_u = self.student(hide(views.u, views.masked_u, self.mask_token, self.unit))
        x_v, s_v = self.student(hide(views.v, views.masked_v, self.mask_token, self.unit))
        with torch.no_grad():
            intact_u = self.target_encoder(views.u)  # (2 B, N, E)
            intact_v = self.target_encoder(views.v)
            t_u = self.target_head(intact_u.mean(1)).float()  # (2 B, K)
            t_v = self.target_head(intact_v.mean(1)).float()

        # L_MIM: hidden tokens of a view, from the same view (Eq. 2)
        of_u, mean_u = self.hidden_tokens(x_u, intact_u, views.masked_u)
        of_v, mean_v = self.hidden_tokens(x_v, intact_v, views.masked_v)
        losses = {"l_mim": (of_u + of_v) / 2}

        # L_[CLS]: one view, from the other (Eq. 1, as in DINO)
        losses["l_cls"] = (self.of_views(s_u, t_v) + self.of_views(s_v, t_u)) / 2

        # Alice, Table 5: one person, from the other
        if self.settings.weight_dv:
            between = self.of_views(s_u, partners_of(t_v)) + self.of_views(s_v, partners_of(t_u))
            losses["l_dv"] = between / 2

        return self.output(
            losses,
            content=has_content(views.u, self.unit),
            compared={"cls": torch.cat([intact_u, intact_v]).mean(1), "T": intact_u},
            ranked={"V": x_u},
            running={"cls": torch.cat([t_u, t_v]).mean(0), "mim": (mean_u + mean_v) / 2},
        )

    def student(self, view: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens of the encoder, (2 B, N, E), and the head's result for the view, (2 B, K)."""
        tokens = self.encoder(view)
        return tokens, self.head(tokens.mean(1))

    def hidden_tokens(
        self, tokens: Tensor, intact: Tensor, masked: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Eq. 2 of one view.

        With CASA, each token asks the masked view and the intact one for what belongs to it, and
        the two answers are compared (Alice, Eqs. 3 to 5).

        Args:
            tokens: (2 B, N, E), the student's, of the masked view.
            intact: (2 B, N, E), the teacher's, of the intact view.
            masked: (2 B, N), True where hidden.

        Returns:
            The loss, and the mean of what the teacher says of all tokens, (K,).
        """
        bottleneck = self.head.mlp(tokens)
        with torch.no_grad():
            of_teacher = self.target_head.mlp(intact)
        if self.casa is not None and self.target_casa is not None:
            bottleneck = self.casa(tokens, bottleneck)
            with torch.no_grad():
                of_teacher = self.target_casa(tokens, of_teacher)

        student = self.head.prototypes(bottleneck)
        with torch.no_grad():
            teacher = self.target_head.prototypes(of_teacher).float()
        losses = self.cross_entropy(student, teacher - self.center_mim)
        return masked_mean(losses, masked), teacher.mean((0, 1))

    def of_views(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Eq. 1 for views, (2 B, K) each."""
        return self.cross_entropy(student, teacher - self.center_cls).mean()

    def cross_entropy(self, student: Tensor, centered: Tensor) -> Tensor:
        """-P(teacher) log P(student), (..., K) -> (...)."""
        settings = self.settings
        return dino_losses(
            student, centered, settings.student_temperature, settings.teacher_temperature
        )

    def resting(self, progress: float) -> Iterable[nn.Parameter]:
        return prototypes_at_rest(self.head, progress, self.settings.rest_prototypes)

    def targets(self) -> list[nn.Module]:
        """The modules of the teacher."""
        targets = [self.target_encoder, self.target_head, self.target_casa]
        return [module for module in targets if module is not None]

    def sources(self) -> list[nn.Module]:
        """Those of the student that they follow."""
        return [m for m in (self.encoder, self.head, self.casa) if m is not None]

    @torch.no_grad()
    def after_step(
        self, momentum: float, running: Mapping[str, Tensor], remembered: Tensor | None = None
    ) -> None:
        """The teacher follows the student, and both centers their means (Algorithm 1)."""
        follow(self.targets(), self.sources(), momentum)
        step = 1 - self.settings.center_momentum
        self.center_cls.lerp_(running["cls"].float(), step)
        self.center_mim.lerp_(running["mim"].float(), step)
