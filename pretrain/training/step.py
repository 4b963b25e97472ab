"""One step of a pretraining: a function of (state, batch), whose random numbers come from the seed and the number of the step.

Where several processes train together each has its part of a batch, and every number here that is not a pair's own is that
of the whole batch.
"""

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from alice_nnunet.model.views import Views, make_views
from alice_nnunet.model.losses import spread
from alice_nnunet.model.alice import Alice, Output
from alice_nnunet.pretrain.training.config import PretrainConfig
from alice_nnunet.pretrain.runtime.distributed import unsynchronised
from alice_nnunet.pretrain.training.state import State
from alice_nnunet.ranks import mean_over_ranks, rank, world
from alice_nnunet.schedules import ema_momentum, warmup_cosine

Spacing = tuple[float, float, float]
TRAINING, VALIDATION, PROBE = 0, 1, 2  # streams of random numbers


class NonFiniteLoss(RuntimeError):
    """The loss or its gradient is not a finite number."""


def generator_at(seed: int, stream: int, step: int, device: torch.device) -> torch.Generator:
    """The generator of one step: the same numbers whether or not the run was interrupted."""
    words = np.random.SeedSequence((seed, stream, step)).generate_state(2, np.uint32)
    return torch.Generator(device).manual_seed(int(words[0]) << 31 | int(words[1]) >> 1)


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """bf16 where asked for, or where the device has it and precision is auto (a CPU emulates it slowly: fp32 there)."""
    auto = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
    return torch.autocast(
        device.type, torch.bfloat16, enabled=precision == "bf16" or (precision == "auto" and auto)
    )


def views_of(
    batch: dict,
    model: Alice,
    generator: torch.Generator,
    spacing: Spacing,
    part: int = 0,
    parts: int = 1,
) -> tuple[Views, Views]:
    """Views of both crops of each pair, on the generator's device. batch: number part of so many parts of a step's batch."""
    return tuple(
        make_views(
            batch[name].to(generator.device, non_blocking=True),
            model.unit,
            spacing,
            model.method,
            generator,
            part,
            parts,
        )
        for name in ("query", "key")
    )


def train_step(
    state: State, batch: dict, config: PretrainConfig, spacing: Spacing
) -> dict[str, Tensor]:
    """One optimiser step on a batch of aligned pairs. Returns the numbers to log, still on the device.

    Where the loss or the gradient is not finite, the step is counted and nothing else changes: state.nonfinite says how many
    in a row.
    """
    model, optimizer, step = state.model.train(), state.optimizer, state.step
    for group in optimizer.param_groups:
        group["lr"] = warmup_cosine(step, config.iterations, config.warmup_iterations, config.lr)
    generator = generator_at(config.seed, TRAINING, step, next(model.parameters()).device)
    optimizer.zero_grad(set_to_none=True)
    numbers, target_means = add_gradients(
        state, views_of(batch, model, generator, spacing, rank(), world()), config
    )
    numbers["gradient norm"] = clip_grad_norm_(model.parameters(), config.clip_grad)
    finite = bool(torch.isfinite(numbers["gradient norm"]) & torch.isfinite(numbers["loss"]))
    if finite:
        optimizer.step()
        model.update_target(
            ema_momentum(step, config.iterations, config.ema), target_means
        )  # EMA, Sec. 3.1
    state.step, state.nonfinite = step + 1, 0 if finite else state.nonfinite + 1
    return numbers


def add_gradients(
    state: State, views: tuple[Views, Views], config: PretrainConfig
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Add the gradient of the batch to the weights', in config.accumulate parts. Returns losses and spreads, and target_means."""
    query, key = views
    device, size, parts = query.online.device, len(query.online) // config.accumulate, []
    for number in range(config.accumulate):
        rows = slice(number * size, (number + 1) * size)
        with unsynchronised(state.network, number + 1 < config.accumulate):
            with autocast(device, config.precision):
                output = state.network(query.rows(rows), key.rows(rows))
            (output.loss / config.accumulate).backward()
        parts.append(
            {
                "loss": output.loss.detach(),
                **output.losses,
                **output.moments,
                **{f"mean {n}": v for n, v in output.target_means.items()},
            }
        )
    means = mean_of_parts(parts)
    factor = config.accumulate * world()
    spreads = {
        f"spread {name}": spread(means.pop(name), factor * count)
        for name, count in output.vectors.items()
    }
    target_means = {name: means.pop(f"mean {name}") for name in output.target_means}
    return {**means, **spreads}, target_means


@torch.no_grad()
def mean_of_parts(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The means of tensors over the parts of a batch and over all processes, in one exchange."""
    flat = torch.stack(
        [torch.cat([value.double().flatten() for value in part.values()]) for part in parts]
    )
    pieces = mean_over_ranks(flat.mean(0)).split([value.numel() for value in parts[0].values()])
    return {
        name: piece.view(value.shape).to(value.dtype)
        for (name, value), piece in zip(parts[0].items(), pieces)
    }


@torch.no_grad()
def validate(
    state: State, batches: list[dict], config: PretrainConfig, spacing: Spacing
) -> tuple[dict[str, float], Output]:
    """Mean losses over the held-out pairs, with the same views every time, and the output for the first batch. For one process
    alone: the model asks nothing of the others."""
    model, device, outputs = state.model.eval(), next(state.model.parameters()).device, []
    for index, batch in enumerate(batches):
        views = views_of(
            batch, model, generator_at(config.seed, VALIDATION, index, device), spacing
        )
        with autocast(device, config.precision):
            outputs.append(model(*views))
    means = {
        f"validation {name}": torch.stack([o.losses[name] for o in outputs]).mean().item()
        for name in outputs[0].losses
    }
    return means, outputs[0]
