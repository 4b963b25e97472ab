"""What a pretraining would do, said before it starts: its size, its schedule, its memory, its first pair."""

import dataclasses
import time
from collections.abc import Iterable
from pathlib import Path

import torch

from alice_nnunet.planning.step_memory import Ledger
from alice_nnunet.pictures import pair_figure, save_figure
from alice_nnunet.pretrain.training.config import PretrainConfig
from alice_nnunet.pretrain.runtime.log import time_left
from alice_nnunet.pretrain.training.loop import make_pairs
from alice_nnunet.pretrain.training.state import State, build_state
from alice_nnunet.pretrain.training.step import TRAINING, autocast, train_step, views_of

GB = 1e9


def print_plan(
    config: PretrainConfig,
    device: torch.device,
    processes: int,
    folder: Path,
    step: int,
    training: int,
    held_out: int = 0,
) -> None:
    """Print it. folder: of the results; step: from which it goes on; training, held_out: volumes."""
    state = build_state(config, device)
    fixed, each = step_bytes(state, config)
    together, rows = config.batch_size // config.accumulate, config.batch_size * processes
    left = config.iterations - step
    millions = lambda module: f"{sum(p.numel() for p in module.parameters()) / 1e6:.1f} M"
    shape = " x ".join(map(str, config.encoder_arguments["crop_size"]))
    with autocast(device, config.precision):
        precision = "bf16" if torch.is_autocast_enabled(device.type) else "fp32"
    begins = (
        f"goes on from step {step}"
        if step
        else (
            "starts anew; the run that is there is kept beside it"
            if any(folder.glob("checkpoint_*.pth"))
            else "starts anew"
        )
    )
    for name, text in {
        "model": f"{config.encoder} {config.preset}, {millions(state.model.encoder)} parameters; with decoder, heads and the EMA target "
        f"{millions(state.model)}",
        "data": f"{config.dataset}, {training} training and {held_out} held-out volumes, pairs of crops of {shape} voxels, matcher {config.matcher}",
        "batch": f"{config.batch_size} pairs x {processes} processes = {rows} pairs in a step, parts {config.accumulate}, {precision} on {device}",
        "schedule": f"{left} of {config.iterations} steps, {left * rows / max(1, training):.0f} pairs for each training volume; lr {config.lr:g} after "
        f"{config.warmup_iterations} steps of warm-up, then a cosine to 0; EMA {config.ema:g} to 1",
        "saved": f"every {config.save_every} steps, some {checkpoint_bytes(state) / GB:.2f} GB; validation every {config.validate_every}",
        "memory": f"{(fixed + each * together) / GB:.2f} GB on each device: {fixed / GB:.2f} whatever the batch, and {each / GB:.2f} for each of "
        f"{together} pairs; measured with one pair and two, {precision} on {device.type}; CUDA's own and gaps come on top",
        "time": f"{time_left(left * (seconds := step_seconds(state, config)))} for {left} steps of {seconds:.3g} s, by the fastest of two steps "
        f"with {timed_pairs(config)} pairs; reading, validation and what several devices tell each other come on top",
        "results": f"{folder}: {begins}",
    }.items():
        print(f"{name:9} {text}", flush=True)


def timed_pairs(config: PretrainConfig) -> int:
    """Pairs in a step that is timed."""
    return min(2, config.batch_size // config.accumulate)


def step_seconds(state: State, config: PretrainConfig) -> float:
    """Seconds of a step on one device, whose pairs it computes by two: those of the fastest of two steps with noise, after one to warm up."""
    device, pairs, times = next(state.model.parameters()).device, timed_pairs(config), []
    small = dataclasses.replace(config, batch_size=pairs, accumulate=1)
    crops = torch.rand(
        2, pairs, config.encoder_arguments["in_channels"], *config.encoder_arguments["crop_size"]
    )
    for _ in range(3):
        start = time.perf_counter()
        numbers = train_step(state, {"query": crops[0], "key": crops[1]}, small, (1.0, 1.0, 1.0))
        numbers["loss"].item()  # waits for the device
        times.append(time.perf_counter() - start)
    return min(times[1:]) * config.batch_size / pairs


def checkpoint_bytes(state: State) -> int:
    """Of a checkpoint: weights, and AdamW's two moments of those that are trained."""
    return size(state.model.state_dict().values()) + moment_bytes(state)


def step_bytes(state: State, config: PretrainConfig) -> tuple[int, int]:
    """What a step takes whatever the batch (weights, gradients, AdamW's moments), and what each pair adds to that: to what forward keeps, or
    to the height of the step where that is more, as it is with recomputed blocks."""
    one, two = (bytes_of_pairs(state, config, pairs) for pairs in (1, 2))
    return size(state.model.state_dict().values()) + moment_bytes(state) * 3 // 2, max(
        b - a for a, b in zip(one, two)
    )


def bytes_of_pairs(state: State, config: PretrainConfig, pairs: int) -> tuple[int, int]:
    """Views, forward and backward of so many pairs of noise: what forward keeps for backward, weights left out, and the most
    bytes of tensors at once, weights and gradients included."""
    device, ledger = next(state.model.parameters()).device, Ledger()
    shape = (pairs, config.encoder_arguments["in_channels"], *config.encoder_arguments["crop_size"])
    weights, kept = {p.untyped_storage().data_ptr() for p in state.model.parameters()}, {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with ledger:
        ledger.count([*state.model.parameters(), *state.model.buffers()])
        for parameter in state.model.parameters():
            parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
        crops = {name: torch.rand(shape, device=device) for name in ("query", "key")}
        views = views_of(
            crops, state.model, torch.Generator(device).manual_seed(0), (1.0, 1.0, 1.0)
        )
        with (
            autocast(device, config.precision),
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        ):
            loss = state.model(*views).loss
        loss.backward()
    state.model.zero_grad(set_to_none=True)
    return sum(length for address, length in kept.items() if address not in weights), ledger.peak


def moment_bytes(state: State) -> int:
    return 2 * size(p for p in state.model.parameters() if p.requires_grad)


def size(tensors: Iterable[torch.Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def draw_first_pair(
    config: PretrainConfig,
    volumes: Path,
    training: list[str],
    spacing: tuple[float, float, float],
    number: int,
    folder: Path,
) -> None:
    """Draw sample number of the stream beside the results folder, so that no run in it is touched."""
    pairs = make_pairs(config, volumes, training, training, TRAINING, number + 1, config.min_score)
    pair, picture = pairs[number], folder.with_name(f"{folder.name}_dry_run.png")
    picture.parent.mkdir(parents=True, exist_ok=True)
    save_figure(
        pair_figure(
            pair["query"],
            pair["key"],
            spacing,
            (f"query {pair['query_case']}", f"key {pair['key_case']}"),
        ),
        picture,
    )
    print(
        f"{'picture':9} {picture}: the first pair, score {pair['score']:.2f}, {pair['rejected']} rejected before it",
        flush=True,
    )
