"""alice-pretrain --dry-run: size, schedule, memory and time of a run, and its first pair."""

import dataclasses
from pathlib import Path

import torch

from alice_nnunet.data.pairs import noise_pairs
from alice_nnunet.geometry import Spacing
from alice_nnunet.memory import GB, Ledger
from alice_nnunet.model.pretraining.method import Drawing
from alice_nnunet.pictures import pair_figure, save_figure
from alice_nnunet.pretrain.runtime.device import autocast
from alice_nnunet.pretrain.runtime.estimate import (
    beside_tensors,
    fastest_of_two,
    gradient_bytes,
    millions,
    precision_name,
    print_row,
    tensor_bytes,
    time_for,
)
from alice_nnunet.pretrain.training.config import PretrainConfig, rate
from alice_nnunet.pretrain.training.folders import describe_runs
from alice_nnunet.pretrain.training.run import make_training_pairs
from alice_nnunet.pretrain.training.state import State, build_state
from alice_nnunet.pretrain.training.step import train_step, views_of
from alice_nnunet.text import voxels

NOISE_SPACING = (1.0, 1.0, 1.0)  # mm; what a step takes does not depend on it


def print_plan(
    config: PretrainConfig,
    device: torch.device,
    processes: int,
    folder: Path,
    step: int,
    training: int,
    held_out: int = 0,
) -> None:
    """Print what a run would do and take.

    Args:
        config: Its settings.
        device: Where it would be computed.
        processes: How many would train together.
        folder: Of its results.
        step: From which it goes on, 0 for a new run.
        training: Number of training volumes.
        held_out: Number of held-out volumes.
    """
    shape = voxels(config.encoder_arguments["crop_size"])
    pairs = config.batch_size * processes
    steps = config.iterations - step
    precision = precision_name(device, autocast(device, config.precision))

    # Each row is printed as soon as it is known: a step of preset paper takes minutes on a CPU.
    print_row("results", f"{folder}: {how_it_begins(folder, step)}")
    print_row(
        "data",
        f"{config.dataset}, {training} training and {held_out} held-out volumes, pairs of crops of "
        f"{shape} voxels, matcher {config.matcher}",
    )
    print_row(
        "batch",
        f"{config.batch_size} pairs x {processes} processes = {pairs} pairs in a step, "
        f"parts {config.accumulate}, {precision} on {device}",
    )
    print_row(
        "schedule",
        f"{steps} of {config.iterations} steps, {steps * pairs / max(1, training):.0f} pairs for "
        f"each training volume; {rate(config, processes)} after {config.warmup_iterations} steps "
        f"of warm-up, then a cosine to 0; EMA {config.ema:g} to 1",
    )

    state = build_state(config, device)
    print_row(
        "model",
        f"{config.encoder} {config.preset}, {millions(state.model.encoder)} parameters; with "
        f"decoder, heads and the EMA target {millions(state.model)}",
    )
    print_row(
        "saved",
        f"every {config.save_every} steps, some {checkpoint_bytes(state) / GB:.2f} GB; "
        f"validation every {config.validate_every}",
    )

    fixed, pair = step_bytes(state, config)
    pairs_at_once = config.batch_size // config.accumulate
    print_row(
        "memory",
        f"{(fixed + pair * pairs_at_once) / GB:.2f} GB on each device: {fixed / GB:.2f} "
        f"whatever the batch, and {pair / GB:.2f} for each of {pairs_at_once} pairs. Measured with "
        f"one pair and two, {precision} on {device.type}; {beside_tensors(device)}",
    )
    print_row(
        "time",
        f"{time_for(steps, step_seconds(state, config))}, by the fastest of two steps with "
        f"{timed_pairs(config)} pairs; reading, validation and the exchange between devices are "
        "not included",
    )


def how_it_begins(folder: Path, step: int) -> str:
    if step:
        return f"resumes from step {step}"

    earlier = describe_runs(folder.parent)
    if earlier != "none":
        return f"starts a new run; the earlier ones are kept: {earlier}"
    return "starts a new run"


def crop_shape(config: PretrainConfig) -> tuple[int, ...]:
    """(C, D, H, W)"""
    return (config.encoder_arguments["in_channels"], *config.encoder_arguments["crop_size"])


def timed_pairs(config: PretrainConfig) -> int:
    """Pairs in a step that is timed."""
    return min(2, config.batch_size // config.accumulate)


def step_seconds(state: State, config: PretrainConfig) -> float:
    """Seconds of a step on one device, from steps of a few pairs of noise."""
    pairs = timed_pairs(config)
    small = dataclasses.replace(config, batch_size=pairs, accumulate=1)
    batch = noise_pairs(pairs, crop_shape(config))

    def step() -> None:
        result = train_step(state, batch, small, NOISE_SPACING)
        result.loss.item()  # waits for the device

    return fastest_of_two(step) * config.batch_size / pairs


def checkpoint_bytes(state: State) -> int:
    """Of a checkpoint: weights, and AdamW's two moments of those that are trained."""
    return tensor_bytes(state.model.state_dict().values()) + 2 * gradient_bytes(state.model)


def step_bytes(state: State, config: PretrainConfig) -> tuple[int, int]:
    """Memory of a step whatever the batch, and what each pair adds.

    The first is that of weights, gradients and AdamW's two moments. A pair adds to what forward
    keeps, and to the height of the step, which with recomputed blocks grows by more.
    """
    fixed = tensor_bytes(state.model.state_dict().values()) + 3 * gradient_bytes(state.model)

    kept_one, peak_one = bytes_of_pairs(state, config, 1)
    kept_two, peak_two = bytes_of_pairs(state, config, 2)
    return fixed, max(kept_two - kept_one, peak_two - peak_one)


def bytes_of_pairs(state: State, config: PretrainConfig, pairs: int) -> tuple[int, int]:
    """Run views, forward and backward on so many pairs of noise.

    Returns:
        What forward keeps for backward, weights left out, and the most bytes of tensors at once,
        weights and gradients included.
    """
    model = state.model
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}  # address -> bytes of a storage

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    def give_back(tensor: torch.Tensor) -> torch.Tensor:
        return tensor

    ledger = Ledger()
    with ledger:
        ledger.count([*model.parameters(), *model.buffers()])
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None

        generator = torch.Generator().manual_seed(0)
        batch = noise_pairs(pairs, crop_shape(config), state.device)
        views = views_of(batch, model, Drawing(generator, NOISE_SPACING))
        with (
            autocast(state.device, config.precision),
            torch.autograd.graph.saved_tensors_hooks(keep, give_back),
        ):
            loss = model(*views).loss
        loss.backward()

    model.zero_grad(set_to_none=True)
    kept_bytes = sum(size for address, size in kept.items() if address not in weights)
    return kept_bytes, ledger.peak


def draw_first_pair(
    config: PretrainConfig,
    volumes: Path,
    training: list[str],
    spacing: Spacing,
    number: int,
    folder: Path,
) -> None:
    """Draw a pair of the training stream beside the results folder: no run in it is touched.

    Args:
        config: Settings of the run.
        volumes: Folder of the preprocessed cases.
        training: Cases to draw from.
        spacing: mm of a voxel (z, y, x).
        number: Of the pair in the stream.
        folder: Of the results.
    """
    pairs = make_training_pairs(config, volumes, training)
    pair = pairs.draw(number)

    figure = pair_figure(
        pair.query.read_crop(pair.query_middle, pairs.size),
        pair.key.read_crop(pair.key_middle, pairs.size),
        spacing,
        (f"query {pair.query.name}", f"key {pair.key.name}, score {pair.match.score:.2f}"),
    )
    picture = folder.with_name(f"{config.encoder}_dry_run.png")
    picture.parent.mkdir(parents=True, exist_ok=True)
    save_figure(figure, picture)
    print_row(
        "picture",
        f"{picture}: the first pair ({pair.kind}), score {pair.match.score:.2f}, "
        f"{pair.rejected} rejected before it",
    )
