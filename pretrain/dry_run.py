"""What a pretraining would do, said before it starts: its size, its schedule, its memory, its first pair."""

from collections.abc import Callable
from pathlib import Path

import torch

from alice_nnunet.pictures import pair_figure, save_figure
from alice_nnunet.pretrain.config import PretrainConfig
from alice_nnunet.pretrain.loop import make_pairs
from alice_nnunet.pretrain.state import State, build_state
from alice_nnunet.pretrain.step import TRAINING, autocast, views_of

GB = 1e9


def print_plan(config: PretrainConfig, device: torch.device, processes: int, folder: Path, step: int, training: int, held_out: int = 0) -> None:
    """Print it. folder: of the results; step: from which it goes on; training, held_out: volumes."""
    state = build_state(config, device)
    fixed, (once, each) = fixed_bytes(state), forward_bytes(state, config)
    together, rows = config.batch_size // config.accumulate, config.batch_size * processes
    left = config.iterations - step
    millions = lambda module: f"{sum(p.numel() for p in module.parameters()) / 1e6:.1f} M"
    shape = " x ".join(map(str, config.encoder_arguments["crop_size"]))
    with autocast(device, config.precision):
        precision = "bf16" if torch.is_autocast_enabled(device.type) else "fp32"
    begins = f"goes on from step {step}" if step else ("starts anew; the run that is there is kept beside it" if any(folder.glob("checkpoint_*.pth"))
                                                       else "starts anew")
    for name, text in {
        "model": f"{config.encoder} {config.preset}, {millions(state.model.encoder)} parameters; with decoder, heads and the EMA target "
                 f"{millions(state.model)}",
        "data": f"{config.dataset}, {training} training and {held_out} held-out volumes, pairs of crops of {shape} voxels, matcher {config.matcher}",
        "batch": f"{config.batch_size} pairs x {processes} processes = {rows} pairs in a step, parts {config.accumulate}, {precision} on {device}",
        "schedule": f"{left} of {config.iterations} steps, {left * rows / max(1, training):.0f} pairs for each training volume; lr {config.lr:g} after "
                    f"{config.warmup_iterations} steps of warm-up, then a cosine to 0; EMA {config.ema:g} to 1",
        "saved": f"every {config.save_every} steps, some {fixed['checkpoint'] / GB:.2f} GB; validation every {config.validate_every}",
        "memory": f"{(fixed['state'] + once + each * together) / GB:.2f} GB on each device: {fixed['state'] / GB:.2f} for weights, gradients and "
                  f"optimizer, {once / GB:.2f} once and {each / GB:.2f} for each of {together} pairs kept for the backward (measured with one pair "
                  f"and two, {precision}); what kernels need on the way comes on top",
        "results": f"{folder}: {begins}",
    }.items():
        print(f"{name:9} {text}", flush=True)


def fixed_bytes(state: State) -> dict[str, int]:
    """state: of weights, gradients and AdamW's two moments. checkpoint: of the file, the encoder's weights twice."""
    size = lambda tensors: sum(t.numel() * t.element_size() for t in tensors)
    model, trained = size(state.model.state_dict().values()), size(p for p in state.model.parameters() if p.requires_grad)
    return {"state": model + 3 * trained, "checkpoint": model + 2 * trained}


def forward_bytes(state: State, config: PretrainConfig) -> tuple[int, int]:
    """What forward keeps for backward, views included and the weights themselves left out: once, as bf16's copies of the
    weights, and for each pair."""
    one, two = (bytes_of_pairs(state, config, pairs) for pairs in (1, 2))
    return max(0, 2 * one - two), two - one


def bytes_of_pairs(state: State, config: PretrainConfig, pairs: int) -> int:
    """What forward of so many pairs of noise keeps."""
    device = next(state.model.parameters()).device
    crops = {name: torch.rand(pairs, config.encoder_arguments["in_channels"], *config.encoder_arguments["crop_size"]) for name in ("query", "key")}
    views = views_of(crops, state.model, torch.Generator(device).manual_seed(0), (1.0, 1.0, 1.0))

    def forward():
        with autocast(device, config.precision):
            return state.model(*views)

    weights = {p.untyped_storage().data_ptr() for p in state.model.parameters()}
    return saved_bytes(forward, weights) + sum(t.numel() * t.element_size() for view in views for t in (view.online, view.target))


def saved_bytes(forward: Callable, left_out: set[int]) -> int:
    """Bytes of the storages that autograd keeps from forward(); left_out: addresses of those that do not count."""
    kept = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in left_out:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = forward()  # keeps them alive, so that no address is used twice
    del result
    return sum(kept.values())


def draw_first_pair(config: PretrainConfig, volumes: Path, training: list[str], spacing: tuple[float, float, float], number: int, folder: Path) -> None:
    """Draw sample number of the stream beside the results folder, so that no run in it is touched."""
    pairs = make_pairs(config, volumes, training, training, TRAINING, number + 1, config.min_score)
    pair, picture = pairs[number], folder.with_name(f"{folder.name}_dry_run.png")
    picture.parent.mkdir(parents=True, exist_ok=True)
    save_figure(pair_figure(pair["query"], pair["key"], spacing, (f"query {pair['query_case']}", f"key {pair['key_case']}")), picture)
    print(f"{'picture':9} {picture}: the first pair, score {pair['score']:.2f}, {pair['rejected']} rejected before it", flush=True)
