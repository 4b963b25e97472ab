"""The pretraining of Swin UNETR on one page (Tang et al., CVPR 2022; arXiv:2111.14791).

Shapes: B pairs, N tokens of a view, E width of the encoder.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alice_nnunet.geometry import Spacing, Triple, triple
from alice_nnunet.model.encoders.base import Encoder
from alice_nnunet.model.initialisation import xavier_uniform
from alice_nnunet.model.losses import has_content
from alice_nnunet.model.pretraining.method import (
    Drawing,
    Output,
    PretrainingMethod,
    token_voxels,
)
from alice_nnunet.model.pretraining.settings import MethodSettings
from alice_nnunet.model.tokens import patchify
from alice_nnunet.model.views import CropViews, joined
from alice_nnunet.ranks import gather_with_gradient, rank
from alice_nnunet.settings.ranges import require_not_negative, require_positive
from alice_nnunet.text import millimetres

QUARTERS = 4  # turns about the body axis: 0, 90, 180 and 270 degrees
SMALLEST_BOX, LARGEST_BOX = 0.1, 0.5  # sides of a cut-out box, in sides of the crop


@dataclass(frozen=True)
class TangSettings(MethodSettings):
    """The settings of Swin UNETR's pretraining.

    Raises:
        ValueError: a value is out of range.
    """

    cut_out: float = 0.3  # share of a view that is cut out (Sec. 3.2, "Masked Volume Inpainting")
    temperature: float = 0.5  # t of the contrast
    channels: int = 512  # width of the contrastive head's result
    weight_inpainting: float = 1.0  # lambda_1 (Sec. 3.2, "Loss Function")
    weight_contrast: float = 1.0  # lambda_2
    weight_rotation: float = 1.0  # lambda_3

    def __post_init__(self):
        require_positive(self, "temperature", "channels")
        require_not_negative(self, "weight_inpainting", "weight_contrast", "weight_rotation")
        if not 0 < self.cut_out < 1:
            raise ValueError(f"cut_out must be in (0, 1), got {self.cut_out}")
        if not any((self.weight_inpainting, self.weight_contrast, self.weight_rotation)):
            raise ValueError("one of the three weights must be positive")

    @classmethod
    def refusal(cls, encoder: str, arguments: dict[str, Any]) -> str | None:
        _, height, width = arguments["crop_size"]
        if height == width:
            return None
        return (
            "its crops are turned by quarters in the axial plane, which must be square: crop_size "
            f"is {height} x {width} there"
        )

    def spacing_refusal(self, spacing: Spacing) -> str | None:
        _, along_y, along_x = spacing
        if math.isclose(along_y, along_x, rel_tol=1e-3):
            return None
        return (
            "it turns crops by quarters in the axial plane, whose voxels must be square: otherwise "
            f"a turned crop has other proportions than a body. They are {millimetres(spacing)}. "
            "Choose a spacing with two equal last numbers: alice-preprocess -spacing"
        )

    @property
    def compares_all_pairs(self) -> str:
        return "method tang"


@dataclass
class TurnedViews(CropViews):
    """Two views of each crop: turned by quarters, and with boxes cut out."""

    whole_1: Tensor  # (B, C, D, H, W), turned
    whole_2: Tensor  # (B, C, D, H, W)
    cut_1: Tensor  # (B, 1, D, H, W), True where voxels are cut out
    cut_2: Tensor  # (B, 1, D, H, W)
    quarters_1: Tensor  # (B,), how often it was turned by 90 degrees
    quarters_2: Tensor  # (B,)


class Tang(PretrainingMethod):
    """Three tasks at once: fill in what was cut out, find the other view, say how it was turned.

    Q and K are two crops like any others: that they match is not used. There is no target network.
    """

    compared = ("cls",)

    def __init__(self, encoder: Encoder, in_channels: int, settings: TangSettings):
        super().__init__(encoder, in_channels, settings)
        self.settings = settings
        self.terms = ("l_inpaint", "l_contrast", "l_rotation")
        self.hints = (
            "l_inpaint is the mean absolute error of a view's voxels, in units of the window; "
            "l_contrast starts near log(4 B - 1) for B pairs, l_rotation near log(4)",
        )

        voxels = token_voxels(encoder.unit, in_channels)
        self.inpainting = nn.Linear(encoder.width, voxels).apply(xavier_uniform)
        self.contrast = nn.Linear(encoder.width, settings.channels).apply(xavier_uniform)
        self.rotation = nn.Linear(encoder.width, QUARTERS).apply(xavier_uniform)
        for name, head in self.heads().items():
            if not self.weights[name]:
                head.requires_grad_(False)

    def heads(self) -> dict[str, nn.Linear]:
        """The head of each term."""
        return {
            "l_inpaint": self.inpainting,
            "l_contrast": self.contrast,
            "l_rotation": self.rotation,
        }

    @property
    def weights(self) -> dict[str, float]:
        settings = self.settings
        return {
            "l_inpaint": settings.weight_inpainting,
            "l_contrast": settings.weight_contrast,
            "l_rotation": settings.weight_rotation,
        }

    def make_views(
        self, crops: Tensor, drawing: Drawing, vectors: Tensor | None = None
    ) -> TurnedViews:
        """Turn and cut out, twice (Sec. 3.2)."""
        size = triple(crops.shape[2:])
        turned, cuts, quarters = [], [], []

        for _ in range(2):
            number = drawing.whole(len(crops))
            device = drawing.generator.device
            drawn = torch.randint(QUARTERS, (number,), generator=drawing.generator, device=device)
            drawn = drawn[drawing.own(len(crops))]
            views = [crop.rot90(k, (-2, -1)) for crop, k in zip(crops, drawn.tolist())]

            boxes = cut_out(number, size, self.settings.cut_out, drawing.generator)
            boxes = boxes[drawing.own(len(crops))]

            turned.append(torch.stack(views))
            cuts.append(boxes[:, None].to(crops.device, non_blocking=True))
            quarters.append(drawn.to(crops.device, non_blocking=True))
        return TurnedViews(*turned, *cuts, *quarters)

    def forward(self, query: TurnedViews, key: TurnedViews, shared: None = None) -> Output:
        """The three proxy tasks and their sum (Sec. 3.2)."""
        views = joined(query, key)
        whole = torch.cat([views.whole_1, views.whole_2])  # (4 B, C, D, H, W), first all views 1
        cut = torch.cat([views.cut_1, views.cut_2])

        tokens = self.encoder(whole.masked_fill(cut, 0.0))  # (4 B, N, E)
        pooled = tokens.mean(1)
        losses: dict[str, Tensor] = {}

        # "Masked Volume Inpainting"
        if self.settings.weight_inpainting:
            filled = self.inpainting(tokens)  # (4 B, N, voxels)
            losses["l_inpaint"] = F.l1_loss(filled.float(), patchify(whole, self.unit).float())

        # "Contrastive Coding": the other view of the same crop, among all others
        if self.settings.weight_contrast:
            projected = F.normalize(self.contrast(pooled).float(), dim=-1)
            losses["l_contrast"] = self.nt_xent(projected)

        # "Image Rotation"
        if self.settings.weight_rotation:
            quarters = torch.cat([views.quarters_1, views.quarters_2])
            losses["l_rotation"] = F.cross_entropy(self.rotation(pooled).float(), quarters)

        return self.output(
            losses,
            content=has_content(views.whole_1, self.unit),
            compared={"cls": pooled},
            ranked={"V": tokens},
        )

    def nt_xent(self, projected: Tensor) -> Tensor:
        """The loss of "Contrastive Coding", with the views of all processes.

        Args:
            projected: (4 B, C) of length 1; rows n and n + 2 B are views of the same crop.
        """
        others = gather_with_gradient(projected) if self.training else projected
        first = rank() * len(projected) if self.training else 0

        rows = torch.arange(len(projected), device=projected.device)
        partner = rows.roll(len(rows) // 2)
        logits = projected @ others.T / self.settings.temperature  # (4 B, all)
        logits = logits.scatter(1, (rows + first)[:, None], -torch.inf)  # no view finds itself
        return F.cross_entropy(logits, partner + first)


def cut_out(number: int, size: Triple, share: float, generator: torch.Generator) -> Tensor:
    """Boxes that together cover at least a share of each crop.

    Args:
        number: of crops.
        size: voxels of a crop (z, y, x).
        share: of its voxels.
        generator: of the CPU.

    Returns:
        (number, D, H, W), True where a voxel is cut out.
    """
    cut = torch.zeros(number, *size, dtype=torch.bool)
    wanted = share * math.prod(size)
    for crop in cut:
        covered = 0
        while covered < wanted:
            sides, places = torch.rand(2, 3, generator=generator)
            sides = SMALLEST_BOX + (LARGEST_BOX - SMALLEST_BOX) * sides
            box = []
            for length, side, place in zip(size, sides.tolist(), places.tolist()):
                voxels = max(1, round(side * length))
                start = round(place * (length - voxels))
                box.append(slice(start, start + voxels))

            # Counting in the box takes 2 ms for a crop of 64 x 192 x 192 voxels, in the crop 35.
            inside = crop[tuple(box)]
            covered += inside.numel() - int(inside.count_nonzero())
            inside.fill_(True)
    return cut
