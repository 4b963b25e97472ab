"""What hiding three quarters of a crop saves in each encoder, and our Swin UNETR against MONAI's, all in one run.

Every row is measured in a process of its own, what it compares in turn. peak_gb is the most memory of the step with three
quarters hidden, dense_peak_gb that of the dense one: CUDA tensors, or on a CPU the whole process, Python and torch included.

    python benchmarks/encoders.py -encoders swin nnformer -presets tiny --json encoders.json
"""

import argparse
import json
import multiprocessing
import resource
import statistics
import time

import torch
from torch import nn

from alice_nnunet.model.encoders.registry import build_encoder
from alice_nnunet.model.presets import CROPS, PRESETS
from alice_nnunet.model.tokens import random_keep
from alice_nnunet.networks.published.swin_unetr import from_monai
from alice_nnunet.networks.swin_unetr import SwinUNETR

IDENTITY = {"scale": [1.0], "shift": [0.0], "low": [None], "high": [None], "flip_axes": []}


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument(
        "-encoders", nargs="+", default=sorted(PRESETS), choices=sorted(PRESETS), metavar="NAME"
    )
    p.add_argument(
        "-presets",
        nargs="+",
        default=["tiny", "small", "paper"],
        choices=list(CROPS),
        metavar="NAME",
    )
    p.add_argument("-batch", type=int, default=1, metavar="N", help="crops at a time (default: 1)")
    p.add_argument(
        "-repeats",
        type=int,
        default=3,
        metavar="N",
        help="timed repeats, the median counts (default: 3)",
    )
    p.add_argument(
        "-patch",
        type=int,
        nargs=3,
        default=(96, 96, 96),
        metavar=("Z", "Y", "X"),
        help="of the Swin UNETR step",
    )
    p.add_argument(
        "-feature_size",
        type=int,
        default=48,
        metavar="F",
        help="of the Swin UNETR step; 0 leaves it out",
    )
    p.add_argument("--json", metavar="FILE", help="write the rows there")
    arguments = p.parse_args()
    devices = [torch.device("cpu")] + ([torch.device("cuda")] if torch.cuda.is_available() else [])
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} CPU threads, {arguments.batch} crops, median of {arguments.repeats}"
    )
    tasks = []
    for device in devices:
        tasks += [
            (encoder_row, (name, preset, device, arguments.batch, arguments.repeats))
            for name in arguments.encoders
            for preset in arguments.presets
        ]
        if arguments.feature_size:
            tasks.append(
                (
                    network_row,
                    (arguments.feature_size, tuple(arguments.patch), device, arguments.repeats),
                )
            )
    rows = []
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        for measure, settings in tasks:
            rows.append(pool.apply(measure, settings))
            print(rows[-1], flush=True)
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump(rows, file, indent=1)


def encoder_row(name: str, preset: str, device: torch.device, batch: int, repeats: int) -> dict:
    """Forward and backward of an encoder over whole crops and over a quarter of their units; fp32 on CPU, bf16 on CUDA."""
    crop_size = CROPS[preset].size
    encoder = build_encoder(
        name, {"in_channels": 1, "crop_size": crop_size, **PRESETS[name][preset].encoder}
    ).to(device)
    crop = torch.rand(batch, 1, *crop_size, device=device)
    units = encoder.grid[0] * encoder.grid[1] * encoder.grid[2]
    keep = random_keep(batch, units, 0.75, torch.Generator(device).manual_seed(0))

    def step(visible) -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            encoder(crop, visible).float().square().mean().backward()
        encoder.zero_grad(set_to_none=True)

    peaks = []
    for visible in (keep, None):  # the smaller first: a process knows only the most it ever had
        step(visible)
        peaks.append(round(peak_gb(device), 2))
    sparse, dense = times_in_turn((lambda: step(keep), lambda: step(None)), device, repeats)
    return {
        "encoder": name,
        "preset": preset,
        "device": device_name(device),
        "crop": list(crop_size),
        "dense_s": round(dense, 4),
        "sparse_s": round(sparse, 4),
        "ratio": round(sparse / dense, 3),
        "peak_gb": peaks[0],
        "dense_peak_gb": peaks[1],
    }


def network_row(
    feature_size: int, patch: tuple[int, int, int], device: torch.device, repeats: int
) -> dict:
    """A training step (forward, backward, SGD) of our Swin UNETR and of MONAI's with the same weights, and how far apart
    their outputs are; fp32."""
    from monai.networks.nets import (
        SwinUNETR as MonaiSwinUNETR,
    )  # here, so that encoders can be measured without MONAI

    torch.manual_seed(0)
    monai = MonaiSwinUNETR(1, 14, feature_size=feature_size).to(device)
    arguments = {
        "in_channels": 1,
        "crop_size": (64, 192, 192),
        **PRESETS["swin"]["paper"].encoder,
        "embed_width": feature_size,
        "bug_compatible": True,
    }
    ours = SwinUNETR(1, 14, arguments, IDENTITY).to(device)
    ours.load_state_dict(from_monai(monai.state_dict()), strict=True)
    image = torch.rand(1, 1, *patch, device=device)
    with torch.no_grad():
        difference = (ours(image) - monai(image)).abs().max().item()
    steps = [lambda network=network: training_step(network, image) for network in (ours, monai)]
    for step in steps:
        step()
    ours_s, monai_s = times_in_turn(steps, device, repeats)
    return {
        "network": f"Swin UNETR {feature_size}, patch {'x'.join(map(str, patch))}, {device_name(device)}",
        "ours_s": round(ours_s, 4),
        "monai_s": round(monai_s, 4),
        "speedup": round(monai_s / ours_s, 3),
        "max_abs_difference": difference,
    }


def training_step(network: nn.Module, image: torch.Tensor) -> None:
    """Forward, backward and a step of SGD so small that the weights stay what they are for the other network."""
    network(image).square().mean().backward()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.sub_(parameter.grad, alpha=1e-12)
    network.zero_grad(set_to_none=True)


def times_in_turn(actions, device: torch.device, repeats: int) -> list[float]:
    """Median seconds of each action, called one after the other repeats times, so that all see the same machine."""
    times = [[] for _ in actions]
    for _ in range(repeats):
        for action, taken in zip(actions, times):
            synchronize(device)
            start = time.perf_counter()
            action()
            synchronize(device)
            taken.append(time.perf_counter() - start)
    return [statistics.median(taken) for taken in times]


def synchronize(device: torch.device) -> None:
    """Wait for a GPU to finish."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_gb(device: torch.device) -> float:
    """Most memory so far: of CUDA tensors since the last call, or of this process since it started."""
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        return peak / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def device_name(device: torch.device) -> str:
    """cpu, or the name of the GPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


if __name__ == "__main__":
    main()
