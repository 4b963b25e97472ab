"""alice-embed --dry-run: size, schedule, memory and time of a training."""

from pathlib import Path

import numpy as np
import torch

from alice_nnunet.memory import GB, Ledger
from alice_nnunet.pretrain.embedding.config import EmbedConfig
from alice_nnunet.pretrain.embedding.state import State, build_state
from alice_nnunet.pretrain.embedding.step import train_step
from alice_nnunet.pretrain.runtime.device import autocast
from alice_nnunet.pretrain.runtime.estimate import (
    beside_tensors,
    fastest_of_two,
    gradient_bytes,
    millions,
    precision_name,
    print_row,
    time_for,
)
from alice_nnunet.text import voxels


def print_plan(
    config: EmbedConfig,
    device: torch.device,
    folder: Path,
    step: int,
    training: int,
    held_out: int = 0,
) -> None:
    """Print what a training of the embedding would do and take.

    Args:
        config: Its settings.
        device: Where it would be computed.
        folder: Of its results.
        step: From which it goes on, 0 for a new training.
        training: Number of training volumes.
        held_out: Number of held-out volumes.
    """
    shape = voxels(config.patch_size)
    precision = precision_name(device, autocast(device, config.precision))
    steps = config.iterations - step

    # Each row is printed as soon as it is known.
    begins = f"resumes from step {step}" if step else "starts a new training"
    print_row("results", f"{folder}: {begins}")
    print_row(
        "data",
        f"{config.dataset}, {training} training and {held_out} held-out volumes, patches of "
        f"{shape} voxels of {config.voxel:g} mm",
    )
    print_row(
        "batch",
        f"{config.batch_size} volumes, two patches of each, {config.points} points in each, "
        f"{precision} on {device}",
    )
    print_row(
        "schedule",
        f"{steps} of {config.iterations} steps; lr {config.lr:g} after "
        f"{config.warmup_iterations} steps of warm-up, then a cosine to 0",
    )
    print_row("saved", f"every {config.save_every} steps; validation every {config.validate_every}")

    state = build_state(config, device)
    batch = noise(config)
    print_row("model", f"{config.features} {config.preset}, {millions(state.network)} parameters")
    print_row(
        "memory",
        f"{step_bytes(state, batch, config) / GB:.2f} GB. Measured with a whole batch, {precision} "
        f"on {device.type}; {beside_tensors(device)}",
    )
    seconds = fastest_of_two(lambda: take_step(state, batch, config))
    print_row(
        "time",
        f"{time_for(steps, seconds)}, by the fastest of two; reading, validation and the index of "
        "every volume are not included",
    )


def noise(config: EmbedConfig) -> dict:
    """A batch of noise, as BodyCrops gives it."""
    rng = np.random.default_rng(0)
    half = np.array(config.crop_size) * config.voxel / 2  # mm
    points = rng.uniform(-half, half, (config.batch_size, config.points, 3))
    crops = rng.random((config.batch_size, 1, *config.crop_size), np.float32)

    return {
        "crop": torch.from_numpy(crops),
        "points": torch.from_numpy(points.astype(np.float32)),
        "middle": torch.zeros(config.batch_size, 3),
        "case": ["noise"] * config.batch_size,
        "number": torch.arange(config.batch_size) // 2,
    }


def take_step(state: State, batch: dict, config: EmbedConfig) -> None:
    """One step, to its end: reading a number waits for the device."""
    result = train_step(state, batch, config)
    result.loss.item()
    state.step = 0  # the schedule has no step after the last


def step_bytes(state: State, batch: dict, config: EmbedConfig) -> int:
    """The most bytes of tensors at once in a step, AdamW's two moments included.

    These exist from the end of the first step on, which is the one that is measured.
    """
    ledger = Ledger()
    with ledger:
        ledger.count([*state.network.parameters(), *state.network.buffers()])
        take_step(state, batch, config)
    return ledger.peak + 2 * gradient_bytes(state.network)
