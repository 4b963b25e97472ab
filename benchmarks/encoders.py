"""Time and memory that each encoder saves by hiding three quarters of a crop.

A second part compares a training step of our Swin UNETR with one of MONAI's. Every row is measured
in a process of its own, and what it compares is measured in turn. peak_gb is the most memory of a
step with three quarters hidden, dense_peak_gb of a step with nothing hidden, in GB of 1e9 bytes:
CUDA tensors, or on a CPU the whole process, Python and torch included.

    python benchmarks/encoders.py -encoders swin nnformer -presets tiny --json encoders.json
"""

import argparse
import json
import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from monai.networks.nets import SwinUNETR as MonaiSwinUNETR
from torch import Tensor, nn

from alice_nnunet.geometry import Triple
from alice_nnunet.model.encoders.registry import build_encoder
from alice_nnunet.model.presets import CROPS, PRESETS
from alice_nnunet.model.tokens import random_keep
from alice_nnunet.networks.published.swin_unetr import from_monai
from alice_nnunet.networks.swin_unetr import SwinUNETR

IDENTITY = {"scale": [1.0], "shift": [0.0], "low": [None], "high": [None], "flip_axes": []}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "-encoders", nargs="+", default=sorted(PRESETS), choices=sorted(PRESETS), metavar="NAME"
    )
    parser.add_argument(
        "-presets", nargs="+", default=list(CROPS), choices=list(CROPS), metavar="NAME"
    )
    parser.add_argument("-batch", type=int, default=1, metavar="N", help="crops (default: 1)")
    parser.add_argument(
        "-repeats",
        type=int,
        default=3,
        metavar="N",
        help="timed repeats, of which the median is reported (default: 3)",
    )
    parser.add_argument(
        "-patch",
        type=int,
        nargs=3,
        default=(96, 96, 96),
        metavar=("Z", "Y", "X"),
        help="voxels of the Swin UNETR step's patch (default: 96 96 96)",
    )
    parser.add_argument(
        "-feature_size",
        type=int,
        default=48,
        metavar="F",
        help="width of Swin UNETR; 0 skips it (default: 48)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows to FILE")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    repeats = arguments.repeats
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} CPU threads, "
        f"{arguments.batch} crops, median of {repeats}"
    )

    devices = [torch.device("cpu")]
    if torch.cuda.is_available():
        devices.append(torch.device("cuda"))

    tasks = []
    for device in devices:
        for name in arguments.encoders:
            for preset in arguments.presets:
                tasks.append((encoder_row, (name, preset, device, arguments.batch, repeats)))
        if arguments.feature_size:
            patch = tuple(arguments.patch)
            tasks.append((network_row, (arguments.feature_size, patch, device, repeats)))

    rows = []
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        for measure, settings in tasks:
            rows.append(pool.apply(measure, settings))
            print(rows[-1], flush=True)

    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1))


def encoder_row(name: str, preset: str, device: torch.device, batch: int, repeats: int) -> dict:
    """Measure forward and backward over whole crops and over a quarter of their units.

    In fp32 on a CPU, in bf16 on CUDA.
    """
    crop_size = CROPS[preset].size
    settings = PRESETS[name][preset].encoder
    encoder = build_encoder(name, {"in_channels": 1, "crop_size": crop_size, **settings})
    encoder.to(device)

    crop = torch.rand(batch, 1, *crop_size, device=device)
    units = encoder.grid[0] * encoder.grid[1] * encoder.grid[2]
    keep = random_keep(batch, units, 0.75, torch.Generator(device).manual_seed(0))

    def step(visible: Tensor | None) -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            loss = encoder(crop, visible).float().square().mean()
        loss.backward()
        encoder.zero_grad(set_to_none=True)

    # The smaller step first: a process only knows the most memory that it ever had.
    step(keep)
    sparse_peak = peak_gb(device)
    step(None)
    dense_peak = peak_gb(device)

    sparse, dense = median_seconds((lambda: step(keep), lambda: step(None)), device, repeats)
    return {
        "encoder": name,
        "preset": preset,
        "device": device_name(device),
        "crop": list(crop_size),
        "dense_s": round(dense, 4),
        "sparse_s": round(sparse, 4),
        "ratio": round(sparse / dense, 3),
        "peak_gb": round(sparse_peak, 2),
        "dense_peak_gb": round(dense_peak, 2),
    }


def network_row(feature_size: int, patch: Triple, device: torch.device, repeats: int) -> dict:
    """Measure a training step of our Swin UNETR and of MONAI's with the same weights, in fp32.

    The row also says how far apart their outputs are.
    """
    torch.manual_seed(0)
    monai = MonaiSwinUNETR(1, 14, feature_size=feature_size).to(device)
    encoder_arguments = {
        "in_channels": 1,
        "crop_size": CROPS["paper"].size,
        **PRESETS["swin"]["paper"].encoder,
        "embed_width": feature_size,
        "bug_compatible": True,
    }
    ours = SwinUNETR(1, 14, encoder_arguments, IDENTITY).to(device)
    ours.load_state_dict(from_monai(monai.state_dict()), strict=True)

    image = torch.rand(1, 1, *patch, device=device)
    with torch.no_grad():
        difference = (ours(image) - monai(image)).abs().max().item()

    # The first steps are not timed.
    training_step(ours, image)
    training_step(monai, image)
    steps = (lambda: training_step(ours, image), lambda: training_step(monai, image))
    ours_s, monai_s = median_seconds(steps, device, repeats)

    size = "x".join(map(str, patch))
    return {
        "network": f"Swin UNETR {feature_size}, patch {size}, {device_name(device)}",
        "ours_s": round(ours_s, 4),
        "monai_s": round(monai_s, 4),
        "speedup": round(monai_s / ours_s, 3),
        "max_abs_difference": difference,
    }


def training_step(network: nn.Module, image: Tensor) -> None:
    """Forward, backward and SGD, with a step so small that both networks stay alike."""
    network(image).square().mean().backward()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.sub_(parameter.grad, alpha=1e-12)
    network.zero_grad(set_to_none=True)


def median_seconds(
    actions: Sequence[Callable[[], None]], device: torch.device, repeats: int
) -> list[float]:
    """Median seconds of each action.

    The actions take turns, so that all of them see the same machine.
    """
    times: list[list[float]] = [[] for _ in actions]
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
    """Most memory so far in GB: of CUDA tensors since the last call, or of this process."""
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        return peak / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9  # ru_maxrss is in KiB


def device_name(device: torch.device) -> str:
    """Name of the GPU, or cpu."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


if __name__ == "__main__":
    main()
