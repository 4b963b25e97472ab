"""How long a pretraining step takes, with and without reading data, how much memory, and what share of the matmul peak it uses.

    python benchmarks/pretrain_step.py -encoders vit -presets paper --json step.json

Per encoder and preset, each in a process of its own. FLOPs are those of the step's matrix products and convolutions (forward of
both branches, backward of the online one; nothing counted twice for recomputation); the peak is measured in the same process
with one large product in the same precision. mfu is with data. Crops come from a preprocessed dataset, -d, or from the CT that
ships with the package, preprocessed for this in a temporary folder. fp32 on a CPU, bf16 on a GPU that has it.
"""

import argparse
import dataclasses
import json
import multiprocessing
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from alice_nnunet.model.presets import CROPS, PRESETS
from alice_nnunet.pretrain.runtime.device import autocast
from alice_nnunet.pretrain.training.config import PretrainConfig, make_config, read_settings
from alice_nnunet.pretrain.training.dry_run import noise
from alice_nnunet.pretrain.training.state import State, build_state
from alice_nnunet.pretrain.training.step import train_step

MATMUL = {"cpu": 2048, "cuda": 8192}  # side of the square matrices of the peak


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument(
        "-encoders", nargs="+", default=sorted(PRESETS), choices=sorted(PRESETS), metavar="NAME"
    )
    p.add_argument(
        "-presets",
        nargs="+",
        default=["tiny", "small", "paper"],
        choices=sorted(CROPS),
        metavar="NAME",
    )
    p.add_argument("-device", choices=("cuda", "cpu"), help="default: cuda where there is one")
    p.add_argument("-batch", type=int, metavar="N", help="pairs in a step (default: the preset's)")
    p.add_argument("-repeats", type=int, default=5, metavar="N", help="timed steps (default: 5)")
    p.add_argument(
        "-np",
        type=int,
        default=min(8, os.cpu_count() or 1),
        metavar="N",
        help="processes that preprocess and, for CUDA, load",
    )
    p.add_argument(
        "-d",
        metavar="ID",
        help="a dataset of nnUNet_raw (default: the CT that ships with the package)",
    )
    p.add_argument(
        "--without-data", action="store_true", help="random crops only; needs no nnU-Net"
    )
    p.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        dest="assignments",
        help="as for alice-pretrain",
    )
    p.add_argument("--json", metavar="FILE", help="write the rows there")
    arguments = p.parse_args()
    device = torch.device(arguments.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} CPU threads, {arguments.repeats} steps timed"
    )
    rows, spawn = [], multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        for preset in arguments.presets:
            volumes = (
                None
                if arguments.without_data
                else prepare(arguments.d, preset, Path(folder) / preset, arguments.np)
            )
            for encoder in arguments.encoders:
                assignments = arguments.assignments + (
                    [f"batch_size={arguments.batch}"] if arguments.batch else []
                )
                config = make_config(
                    "Dataset000_Step",
                    read_settings(encoder, preset, ["matcher=body", *assignments]),
                )
                with spawn.Pool(1) as fresh:  # its memory is this row's alone
                    rows.append(
                        fresh.apply(row, (config, device, volumes, arguments.repeats, arguments.np))
                    )
                print(rows[-1], flush=True)
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump(rows, file, indent=1)


def prepare(dataset: str | None, preset: str, folder: Path, processes: int) -> Path:
    """Folder of the preprocessed volumes. dataset: of nnUNet_raw, or None for the CT that ships with the package, in folder."""
    from alice_nnunet.datasets.raw_dataset import dataset_name
    from alice_nnunet.demo.datasets import UNLABELED, write_datasets
    from alice_nnunet.pretrain.datasets.preprocessed import (
        preprocessed_volumes,
    )  # here, so that a machine without nnU-Net can measure the rest

    if dataset is None:
        for name in ("raw", "preprocessed", "results"):
            os.environ[f"nnUNet_{name}"] = str(folder / name)
            (folder / name).mkdir(parents=True)
        write_datasets(folder / "raw")
    return preprocessed_volumes(
        dataset_name(dataset or UNLABELED),
        processes,
        CROPS[preset].spacing,
        CROPS[preset].size,
    )[1]


def row(
    config: PretrainConfig, device: torch.device, volumes: Path | None, repeats: int, workers: int
) -> dict:
    """All that is measured of one encoder and preset."""
    state, batch = build_state(config, device), noise(config, config.batch_size, device)
    spacing = CROPS[config.preset].spacing
    step_s = seconds(lambda: train_step(state, batch, config, spacing), device, repeats)
    with_data_s = (
        time_with_data(config, state, volumes, device, repeats, workers) if volumes else None
    )
    memory, flops, peak = (
        peak_gb(device),
        step_flops(config, device),
        matmul_peak(device, config.precision),
    )
    share = lambda s: s and round(flops / s / peak, 4)
    rounded = lambda s: s and round(s, 4)
    return {
        "encoder": config.encoder,
        "preset": config.preset,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "pairs": config.batch_size,
        "step_s": rounded(step_s),
        "step_with_data_s": rounded(with_data_s),
        "peak_gb": round(memory, 2),
        "mfu": share(with_data_s),
        "mfu_without_data": share(step_s),
        "tflop_per_step": round(flops / 1e12, 4),
        "matmul_peak_tflops": round(peak / 1e12, 3),
    }


def step_flops(config: PretrainConfig, device: torch.device) -> int:
    """Floating point operations of one step. Attention is computed as plain products for this, which every device counts alike."""
    plain = dataclasses.replace(config, compile="off", checkpoint_blocks=False)
    state = build_state(plain, device)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        train_step(
            state, noise(plain, plain.batch_size, device), plain, CROPS[config.preset].spacing
        )
    return counter.get_total_flops()


def time_with_data(
    config: PretrainConfig,
    state: State,
    volumes: Path,
    device: torch.device,
    repeats: int,
    workers: int,
) -> float:
    """Seconds for a step whose pairs are read from volumes as alice-pretrain reads them, over repeats steps after the first two."""
    from alice_nnunet.data.volumes import case_names
    from alice_nnunet.pretrain.training.run import Run

    cases = case_names(volumes)
    run = Run(
        config,
        state,
        volumes,
        folder=volumes,
        spacing=CROPS[config.preset].spacing,
        data={},
        adaptation_plan={},
        training=cases,
        held_out=[],
        workers=workers if device.type == "cuda" else 0,
    )
    with closing(run.training_batches()) as batches:
        one = lambda: train_step(state, next(batches), config, run.spacing)
        for _ in range(2):
            one()
        return seconds(lambda: [one() for _ in range(repeats)], device, 1, warm=True) / repeats


def seconds(action: Callable, device: torch.device, repeats: int, warm: bool = False) -> float:
    """Median time of action; the first, on a GPU the first three, are not counted unless it is warm: kernels are chosen then."""
    times = []
    for _ in range(repeats + (0 if warm else 3 if device.type == "cuda" else 1)):
        start = time.perf_counter()
        action()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times[-repeats:])


def matmul_peak(device: torch.device, precision: str) -> float:
    """Operations per second of a large matrix product in the precision that a step uses: the best of ten."""
    n = MATMUL[device.type]
    a, b = torch.randn(2, n, n, device=device)
    with autocast(device, precision):
        product = torch.mm(a, b)
        a, b = a.to(product.dtype), b.to(product.dtype)
        return (
            2 * n**3 / min(seconds(lambda: torch.mm(a, b), device, 1, warm=True) for _ in range(10))
        )


def peak_gb(device: torch.device) -> float:
    """Most memory of this process: CUDA tensors of the timed steps, or on a CPU everything, torch's own half GB included."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


if __name__ == "__main__":
    main()
