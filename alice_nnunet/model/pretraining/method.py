"""What the loop knows of a method of pretraining: PretrainingMethod, and what it computes, Output.

A method is one page in `alice_nnunet.model.methods` and one entry in `registry`. The loop draws
aligned pairs of crops, asks for their views, for the losses, and tells the method when a step was
taken. It saves and resumes whatever parameters and buffers the method has.

Shapes: B pairs, C channels, D H W voxels in (z, y, x) order, N tokens of a crop.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from alice_nnunet.geometry import Spacing, Triple
from alice_nnunet.model.encoders.base import Encoder
from alice_nnunet.model.losses import moments, second_moments, spread
from alice_nnunet.model.pretraining.settings import MethodSettings
from alice_nnunet.model.views import CropViews
from alice_nnunet.ranks import gather_rows, rank

RANK_TOKENS = 8  # of each crop, evenly spaced, that the effective rank is measured on


@dataclass(frozen=True)
class Drawing:
    """Where the random numbers of views come from, and what views must respect.

    The crops may be one of several equal parts of a batch. Numbers are drawn for the whole batch,
    and each part takes its own, so a crop's views do not depend on how the batch is divided.

    Attributes:
        generator: source of all random numbers.
        spacing: mm of a voxel (z, y, x).
        windowed: channels that are a window of HU as 0 to 1.
        part: number of this part of the batch.
        parts: number of parts.
        progress: share of the run's steps that are done, for methods that change on the way.
    """

    generator: torch.Generator
    spacing: Spacing
    windowed: Sequence[int] = ()
    part: int = 0
    parts: int = 1
    progress: float = 0.0

    def whole(self, crops: int) -> int:
        """Crops of the whole batch, where a part has this many."""
        return crops * self.parts

    def own(self, crops: int) -> slice:
        """Which of the whole batch's rows are this part's."""
        return slice(crops * self.part, crops * (self.part + 1))


@dataclass
class Reconstruction:
    """What a picture of a reconstruction shows.

    Attributes:
        crop: (B, C, D, H, W), Q as the online branch had it.
        masked: (B, N), True where a token of this crop was hidden.
        predicted: (B, N, voxels of a token), of this crop.
        normalise: what of a token had mean 0 and variance 1, see losses.normalised_tokens.
    """

    crop: Tensor
    masked: Tensor
    predicted: Tensor
    normalise: str


@dataclass
class Output:
    """What a step optimises and logs.

    All tensors but `remembered` and `reconstruction` are means: those of equal parts of a batch
    average to those of the batch. Terms of weight 0 are not computed and have no entries.

    Attributes:
        loss: weighted sum of the losses.
        losses: by the names in `PretrainingMethod.terms`.
        moments: (2, C) of the features in `PretrainingMethod.compared`, see losses.moments.
        vectors: number of vectors that each of the moments is of.
        second_moments: (1 + C, C) of the features whose effective rank is measured, see
            losses.second_moments.
        running: means that the method's running means follow, see `after_step`.
        content: share of the tokens of both crops that have more than one value, see
            losses.has_content.
        remembered: of all processes, what later steps remember of this one; not a mean.
        reconstruction: of Q, where the method reconstructs.
    """

    loss: Tensor
    losses: dict[str, Tensor]
    moments: dict[str, Tensor]
    vectors: dict[str, int]
    second_moments: dict[str, Tensor]
    running: dict[str, Tensor]
    content: Tensor
    remembered: Tensor | None = None
    reconstruction: Reconstruction | None = None

    @property
    def spreads(self) -> dict[str, Tensor]:
        """Spread of the compared features; under 0.1 it means collapse."""
        return {name: spread(values, self.vectors[name]) for name, values in self.moments.items()}


class PretrainingMethod(nn.Module):
    """A method of pretraining around an encoder.

    A subclass calls `super().__init__`, adds its networks, and writes `make_views` and `forward`.

    Args:
        encoder: with random weights. It is what a run is for.
        in_channels: image channels.
        settings: of the method.

    Attributes:
        terms: names of the losses, in the order of the log.
        compared: names of the features whose spread is logged.
        hints: lines at the top of the log: how its values are read.
        not_decayed: ends of the names of parameters without weight decay, beside norms and biases.
        separately: whether Q and K go through the networks one after the other, where a method can:
            what a network needs for a moment is then that of half as many crops. The result is the
            same.
    """

    terms: tuple[str, ...] = ()
    compared: tuple[str, ...] = ()
    hints: tuple[str, ...] = ()
    not_decayed: ClassVar[tuple[str, ...]] = (".positions", "mask_token")
    separately: bool = False

    def __init__(self, encoder: Encoder, in_channels: int, settings: MethodSettings):
        super().__init__()
        self.encoder = encoder
        self.in_channels = in_channels
        self.unit = encoder.unit

    @property
    def weights(self) -> dict[str, float]:
        """The weight of each term in the loss."""
        raise NotImplementedError

    def make_views(
        self, crops: Tensor, drawing: Drawing, vectors: Tensor | None = None
    ) -> CropViews:
        """Draw the views of one crop of each pair, of Q and then of K.

        Args:
            crops: (B, C, D, H, W), on the device of the networks.
            drawing: source of random numbers.
            vectors: (B, N, A), the matcher's at the crop's tokens; only where the settings ask for
                them (`vector_channels`).
        """
        raise NotImplementedError

    def forward(self, query: Any, key: Any, shared: Any = None) -> Output:
        """The losses for aligned crops Q and K of different people.

        Args:
            query: views of Q, of `make_views`.
            key: views of K.
            shared: where Q and K are a part of a step's pairs, an item of `share`.
        """
        raise NotImplementedError

    def share(self, parts: list[tuple[Any, Any]]) -> Sequence[Any]:
        """What each part of a step needs to know of the others, for `forward`.

        Args:
            parts: the views of Q and K of each part.
        """
        return [None] * len(parts)

    def resting(self, progress: float) -> Iterable[nn.Parameter]:
        """The trained parameters that the next step leaves as they are.

        Args:
            progress: share of the run's steps that are done.
        """
        return ()

    @torch.no_grad()
    def after_step(
        self,
        momentum: float,
        running: Mapping[str, Tensor],
        remembered: Tensor | None = None,
    ) -> None:
        """Move what follows the weights, after an optimizer step.

        Args:
            momentum: of the target networks at this step.
            running: of `Output`, for the whole batch.
            remembered: of `Output`.
        """

    def recomputed(self) -> Iterable[nn.Module]:
        """The networks whose blocks are recomputed in the backward pass, to save memory."""
        return [self.encoder]

    def output(
        self,
        losses: dict[str, Tensor],
        content: Tensor,
        compared: Mapping[str, Tensor] | None = None,
        ranked: Mapping[str, Tensor] | None = None,
        running: dict[str, Tensor] | None = None,
        remembered: Tensor | None = None,
        reconstruction: Reconstruction | None = None,
    ) -> Output:
        """The output of a step.

        Args:
            losses: of all terms whose weight is not 0.
            content: (crops, N) bool, see losses.has_content.
            compared: features whose spread and effective rank are measured, (..., C).
            ranked: further features, (..., C), of which only the rank is.
            running: see Output.
            remembered: see Output.
            reconstruction: see Output.
        """
        compared = compared or {}
        weights = self.weights
        terms = [weights[name] * loss for name, loss in losses.items()]

        # The effective rank needs more than the spread: all products of two channels.
        sampled = {name: some_tokens(v) for name, v in {**compared, **(ranked or {})}.items()}
        return Output(
            loss=sum(terms, start=torch.zeros((), device=content.device)),
            losses=losses,
            moments={name: moments(vectors) for name, vectors in compared.items()},
            vectors={name: vectors.shape[:-1].numel() for name, vectors in compared.items()},
            second_moments={name: second_moments(vectors) for name, vectors in sampled.items()},
            running=running or {},
            content=content.float().mean(),
            remembered=remembered,
            reconstruction=reconstruction,
        )


def untrainable(*modules: nn.Module) -> None:
    """Leave the parameters of these modules out of the training, such as those of a target."""
    for module in modules:
        module.requires_grad_(False)


@torch.no_grad()
def follow(targets: Iterable[nn.Module], sources: Iterable[nn.Module], momentum: float) -> None:
    """Exponential moving average: target = momentum * target + (1 - momentum) * source.

    Args:
        targets: modules that follow.
        sources: those they follow, in the same order and of the same shapes.
        momentum: in [0, 1].
    """
    followers: list[Tensor] = [p for module in targets for p in module.parameters()]
    followed: list[Tensor] = [p for module in sources for p in module.parameters()]
    torch._foreach_lerp_(followers, followed, 1 - momentum)


def everyones(rows: Tensor, training: bool) -> tuple[Tensor, int]:
    """The rows of all processes, and which of them is this one's first.

    Validation runs in one process. The others would not answer.

    Args:
        rows: (M, ...), as many in each process.
        training: whether all processes ask at the same time.
    """
    if not training:
        return rows, 0
    return gather_rows(rows), rank() * len(rows)


def some_tokens(features: Tensor) -> Tensor:
    """At most RANK_TOKENS evenly spaced tokens of each crop, (B, N, C); vectors (B, C) stay."""
    if features.ndim == 2:
        return features
    tokens = features.shape[1]
    stride = -(-tokens // RANK_TOKENS)
    return features[:, ::stride].detach()


def partners_of(crops: Tensor) -> Tensor:
    """For crops (2 B, ...), Q first and then K, those of the other person."""
    return crops.roll(len(crops) // 2, 0)


def token_voxels(unit: Triple, in_channels: int) -> int:
    """Values of one token, channels included."""
    return in_channels * unit[0] * unit[1] * unit[2]
