"""One step of a pretraining: a function of (state, batch), with random numbers from (seed, step).

Where several processes train together each has its part of a batch, and every number here that is
not a pair's own is that of the whole batch.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_, get_total_norm
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from alice_nnunet.data.pairs import PairBatch
from alice_nnunet.geometry import Spacing
from alice_nnunet.model.losses import spread
from alice_nnunet.model.pretraining.method import Drawing, Output, PretrainingMethod
from alice_nnunet.model.views import CropViews
from alice_nnunet.pretrain.runtime.device import TRAINING, VALIDATION, autocast, generator_at
from alice_nnunet.pretrain.runtime.distributed import unsynchronised
from alice_nnunet.pretrain.training.config import PretrainConfig
from alice_nnunet.pretrain.training.state import State
from alice_nnunet.ranks import mean_over_ranks, rank, world
from alice_nnunet.schedules import ema_momentum, warmup_cosine

CPU = torch.device("cpu")


@dataclass(frozen=True)
class StepResult:
    """What a step computed; tensors are still on the device.

    Attributes:
        loss: The weighted sum of the losses.
        losses: Those of the method (PretrainingMethod.terms), without those of weight 0.
        spreads: Of the features that the method compares, without those of weight 0; under 0.1
            the features have collapsed.
        second_moments: Of the features whose effective rank is logged, see Output.
        gradient_norm: Of all gradients together, before they are clipped.
        rejected: Pairs that were rejected for each pair of the batch, of this process alone.
        unmatched: Share of the batch's pairs that do not match, of this process alone.
        content: Share of the crops' tokens that have more than one value.
        finite: Whether loss and gradient were finite; otherwise the step was skipped.
    """

    loss: Tensor
    losses: dict[str, Tensor]
    spreads: dict[str, Tensor]
    second_moments: dict[str, Tensor]
    gradient_norm: Tensor
    rejected: Tensor
    unmatched: float
    content: Tensor
    finite: bool

    def scalars(self) -> dict[str, Tensor]:
        """What is logged, by its name in the log."""
        spreads = {f"spread {name}": value for name, value in self.spreads.items()}
        return {
            "loss": self.loss,
            **self.losses,
            **spreads,
            "gradient norm": self.gradient_norm,
            "rejected": self.rejected,
            "unmatched": torch.tensor(self.unmatched),
            "content": self.content,
        }


@dataclass(frozen=True)
class BatchMeans:
    """Means over the parts of a batch and over all processes. Names and shapes as in Output."""

    loss: Tensor
    losses: dict[str, Tensor]
    spreads: dict[str, Tensor]
    second_moments: dict[str, Tensor]
    running: dict[str, Tensor]
    content: Tensor
    remembered: Tensor | None  # of all processes and parts, not a mean


def train_step(
    state: State, batch: PairBatch, config: PretrainConfig, spacing: Spacing
) -> StepResult:
    """Take one optimizer step on a batch of aligned pairs.

    Where the loss or the gradient is not finite, the step is counted and nothing else changes.
    """
    model = state.model
    optimizer = state.optimizer
    step = state.step

    model.train()
    peak = config.peak_lr(world())
    lr = warmup_cosine(step, config.iterations, config.warmup_iterations, peak)
    for group in optimizer.param_groups:
        group["lr"] = lr

    generator = generator_at(config.seed, TRAINING, step, CPU)
    progress = step / config.iterations
    drawing = Drawing(generator, spacing, config.windowed, rank(), world(), progress)
    views = views_of(batch, model, drawing)

    optimizer.zero_grad(set_to_none=True)
    means = add_gradients(state, views, config)
    for parameter in model.resting(progress):
        parameter.grad = None
    gradient_norm = clip_grad_norm_(model.parameters(), config.clip_grad)

    finite = bool(torch.isfinite(gradient_norm) & torch.isfinite(means.loss))
    if finite:
        optimizer.step()
        momentum = ema_momentum(step, config.iterations, config.ema)
        model.after_step(momentum, means.running, means.remembered)
    state.count_step(finite)

    return StepResult(
        means.loss,
        means.losses,
        means.spreads,
        means.second_moments,
        gradient_norm,
        batch.rejected.float().mean(),
        len(batch.unmatched) / len(batch.kind),
        means.content,
        finite,
    )


def views_of(
    batch: PairBatch, model: PretrainingMethod, drawing: Drawing
) -> tuple[CropViews, CropViews]:
    """Draw the views of both crops of each pair.

    Args:
        batch: Pairs, on any device.
        model: Decides what is drawn. The views are on its device.
        drawing: With a generator of the CPU, so that the views do not depend on the device.

    Returns:
        The views of the queries and those of the keys.
    """
    device = next(model.encoder.parameters()).device

    # Q first: both draw from the generator.
    made = []
    for crops, vectors in (
        (batch.query, batch.query_anatomy),
        (batch.key, batch.key_anatomy),
    ):
        crops = crops.to(device, non_blocking=True)
        if vectors is not None:
            vectors = vectors.to(device, non_blocking=True)
        made.append(model.make_views(crops, drawing, vectors))

    query, key = made
    return query, key


def add_gradients(
    state: State, views: tuple[CropViews, CropViews], config: PretrainConfig
) -> BatchMeans:
    """Add the gradient of the batch to that of the weights, in config.accumulate parts."""
    query, key = views
    pairs = len(query) // config.accumulate  # in a part
    rows = [slice(n * pairs, (n + 1) * pairs) for n in range(config.accumulate)]
    views_of_parts = [(query.rows(part), key.rows(part)) for part in rows]
    with autocast(state.device, config.precision):
        shared = state.model.share(views_of_parts)

    parts = []
    for number, views_of_part in enumerate(views_of_parts):
        more_to_come = number + 1 < config.accumulate

        with unsynchronised(state.network, more_to_come):
            with autocast(state.device, config.precision):
                output = state.network(*views_of_part, shared[number])
            (output.loss / config.accumulate).backward()

        parts.append(
            {
                "loss": output.loss.detach(),
                "losses": output.losses,
                "moments": output.moments,
                "second_moments": output.second_moments,
                "running": output.running,
                "content": output.content,
            }
        )

    means = mean_of_parts(parts)
    factor = config.accumulate * world()
    spreads = {
        name: spread(means["moments"][name], factor * vectors)
        for name, vectors in output.vectors.items()
    }
    return BatchMeans(
        means["loss"],
        means["losses"],
        spreads,
        means["second_moments"],
        means["running"],
        means["content"],
        output.remembered,
    )


@torch.no_grad()
def mean_of_parts(parts: list[dict]) -> dict:
    """Average tensors over the parts of a batch and over all processes, in one exchange.

    Args:
        parts: Dictionaries, also nested ones, of the same tensors for each part.
    """
    first, structure = tree_flatten(parts[0])
    flat = torch.stack(
        [torch.cat([leaf.double().flatten() for leaf in tree_leaves(part)]) for part in parts]
    )

    pieces = mean_over_ranks(flat.mean(0)).split([leaf.numel() for leaf in first])
    means = [piece.view(leaf.shape).to(leaf.dtype) for piece, leaf in zip(pieces, first)]
    return tree_unflatten(means, structure)


def encoder_gradients(
    state: State, batch: PairBatch, config: PretrainConfig, spacing: Spacing
) -> dict[str, float]:
    """Norm of the gradient that each weighted loss gives the encoder, on held-out pairs.

    For one process alone, and without effect on the run. It costs a forward pass and a backward
    pass for each loss, on one of the config.accumulate parts of a batch.

    Args:
        state: The run.
        batch: Held-out pairs.
        config: Its settings.
        spacing: mm of a voxel (z, y, x).

    Returns:
        For each of the method's losses, without those of weight 0.
    """
    state.model.eval()
    rows = slice(len(batch.query) // config.accumulate)
    generator = generator_at(config.seed, VALIDATION, 0, CPU)
    query, key = views_of(batch, state.model, Drawing(generator, spacing, config.windowed))

    # Compiled blocks give up what they saved in their first backward pass.
    with torch.compiler.set_stance("force_eager"), autocast(state.device, config.precision):
        output = state.model(query.rows(rows), key.rows(rows))

    weights = [weight for weight in state.model.encoder.parameters() if weight.requires_grad]
    norms = {}
    for name, loss in output.losses.items():
        weighted = loss * state.model.weights[name]
        gradients = torch.autograd.grad(weighted, weights, retain_graph=True, allow_unused=True)
        norms[name] = get_total_norm([g for g in gradients if g is not None]).item()
    return norms


@torch.no_grad()
def validate(
    state: State, batches: list[PairBatch], config: PretrainConfig, spacing: Spacing
) -> tuple[dict[str, float], Output]:
    """Compute the mean losses over held-out pairs, with the same views every time.

    For one process alone: the model asks nothing of the others.

    Returns:
        The means of the losses, without those of weight 0, and the output for the first batch.
    """
    state.model.eval()

    outputs = []
    for index, batch in enumerate(batches):
        generator = generator_at(config.seed, VALIDATION, index, CPU)
        views = views_of(batch, state.model, Drawing(generator, spacing, config.windowed))
        with autocast(state.device, config.precision):
            outputs.append(state.model(*views))

    means = {
        name: torch.stack([output.losses[name] for output in outputs]).mean().item()
        for name in outputs[0].losses
    }
    return means, outputs[0]
