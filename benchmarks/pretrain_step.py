"""How long does a pretraining step take, how much memory, and what share of the matmul peak?

    python benchmarks/pretrain_step.py -encoders vit -presets paper --json step.json

Each encoder and preset is measured in a process of its own, with and without reading data. Crops
come from a preprocessed dataset, -d, or from the CT that ships with the package, preprocessed for
this in a temporary folder. fp32 on a CPU, bf16 on a GPU that has it.

FLOPs are those of the step's matrix products and convolutions: forward of both branches, backward
of the online one, nothing counted twice for recomputation. The peak is measured in the same process
with one large product in the same precision. mfu is FLOPs per second over the peak, with data.
"""

import argparse
import dataclasses
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from alice_nnunet.data.pairs import PairBatch, noise_pairs
from alice_nnunet.model.presets import CROPS, PRESETS
from alice_nnunet.pretrain.runtime.device import autocast, peak_memory
from alice_nnunet.pretrain.training.config import PretrainConfig, make_config, read_settings
from alice_nnunet.pretrain.training.state import State, build_state
from alice_nnunet.pretrain.training.step import train_step

MATMUL = {"cpu": 2048, "cuda": 8192}  # side of the square matrices of the peak


def parser() -> argparse.ArgumentParser:
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
    p.add_argument("-device", choices=("cuda", "cpu"), help="default: cuda if available")
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
    p.add_argument("--json", type=Path, metavar="FILE", help="write the rows there")
    return p


def main() -> None:
    arguments = parser().parse_args()
    device = torch.device(arguments.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} CPU threads, "
        f"{arguments.repeats} steps timed"
    )

    settings = ["matcher=body", *arguments.assignments]
    if arguments.batch:
        settings.append(f"batch_size={arguments.batch}")

    rows = []
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        for preset in arguments.presets:
            volumes = None
            if not arguments.without_data:
                volumes = prepare(arguments.d, preset, Path(folder) / preset, arguments.np)

            for encoder in arguments.encoders:
                config = make_config("Dataset000_Step", read_settings(encoder, preset, settings))
                with spawn.Pool(1) as fresh:  # its memory is this row's alone
                    row = fresh.apply(
                        measure, (config, device, volumes, arguments.repeats, arguments.np)
                    )
                rows.append(row)
                print(row, flush=True)

    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1))


def prepare(dataset: str | None, preset: str, folder: Path, processes: int) -> Path:
    """Preprocess volumes, and return their folder.

    Args:
        dataset: Of nnUNet_raw, or None for the CT that ships with the package.
        preset: Decides spacing and crop.
        folder: For the CT that ships with the package.
        processes: That preprocess.
    """
    # Not above: a machine without nnU-Net can measure the rest.
    from alice_nnunet.datasets.raw_dataset import dataset_name
    from alice_nnunet.demo.datasets import UNLABELED, write_datasets
    from alice_nnunet.pretrain.datasets.preprocessed import preprocessed_volumes

    if dataset is None:
        for name in ("raw", "preprocessed", "results"):
            os.environ[f"nnUNet_{name}"] = str(folder / name)
            (folder / name).mkdir(parents=True)
        write_datasets(folder / "raw")

    name = dataset_name(dataset or UNLABELED)
    return preprocessed_volumes(name, processes, preset, CROPS[preset].size)[1]


def measure(
    config: PretrainConfig, device: torch.device, volumes: Path | None, repeats: int, workers: int
) -> dict:
    """All that is measured of one encoder and preset.

    Args:
        config: Settings of the steps.
        device: Where they are computed.
        volumes: Folder of preprocessed volumes; None: no steps with data.
        repeats: Timed steps.
        workers: Processes that load for a GPU.
    """
    state = build_state(config, device)
    batch = random_batch(config, device)
    spacing = CROPS[config.preset].spacing

    step = seconds(lambda: train_step(state, batch, config, spacing), device, repeats)
    with_data = None
    if volumes:
        with_data = time_with_data(config, state, volumes, repeats, workers)

    memory = peak_memory(device)
    flops = step_flops(config, device)
    peak = matmul_peak(device, config.precision)

    def share_of_peak(time_of_step: float) -> float:
        return round(flops / time_of_step / peak, 4)

    return {
        "encoder": config.encoder,
        "preset": config.preset,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "pairs": config.batch_size,
        "step_s": round(step, 4),
        "step_with_data_s": round(with_data, 4) if with_data else None,
        "peak_gb": round(memory, 2),
        "mfu": share_of_peak(with_data) if with_data else None,
        "mfu_without_data": share_of_peak(step),
        "tflop_per_step": round(flops / 1e12, 4),
        "matmul_peak_tflops": round(peak / 1e12, 3),
    }


def random_batch(config: PretrainConfig, device: torch.device) -> PairBatch:
    """A step's pairs of noise, on the device."""
    return noise_pairs(config.batch_size, (1, *config.encoder_arguments["crop_size"]), device)


def step_flops(config: PretrainConfig, device: torch.device) -> int:
    """Floating point operations of one step.

    Attention is computed as plain products for this, which every device counts alike.
    """
    plain = dataclasses.replace(config, compile="off", checkpoint_blocks=False)
    state = build_state(plain, device)
    batch = random_batch(plain, device)

    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        train_step(state, batch, plain, CROPS[config.preset].spacing)
    return counter.get_total_flops()


def time_with_data(
    config: PretrainConfig, state: State, volumes: Path, repeats: int, workers: int
) -> float:
    """Seconds of a step whose pairs are read as alice-pretrain reads them.

    The mean of so many steps, after two that do not count.
    """
    from alice_nnunet.data.volumes import case_names
    from alice_nnunet.pretrain.training.run import Run

    run = Run(
        config,
        state,
        volumes,
        folder=volumes,
        spacing=CROPS[config.preset].spacing,
        data={},
        adaptation_plan={},
        training=case_names(volumes),
        held_out=[],
        workers=workers if state.device.type == "cuda" else 0,
    )

    with closing(run.training_batches()) as batches:

        def take_steps(number: int) -> None:
            for _ in range(number):
                train_step(state, next(batches), config, run.spacing)

        take_steps(2)
        return seconds(lambda: take_steps(repeats), state.device, 1, warm=True) / repeats


def seconds(action: Callable, device: torch.device, repeats: int, warm: bool = False) -> float:
    """Median time of action.

    Args:
        action: What is timed.
        device: That it uses.
        repeats: How often.
        warm: Count the first calls too; otherwise one, on a GPU three, are not counted, in which
            kernels are chosen.
    """
    uncounted = 3 if device.type == "cuda" else 1
    times = []
    for _ in range(repeats if warm else repeats + uncounted):
        start = time.perf_counter()
        action()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times[-repeats:])


def matmul_peak(device: torch.device, precision: str, side: int | None = None) -> float:
    """Operations per second of a large matrix product in a step's precision: the best of ten.

    side: of the square matrices (default: one that fills the device).
    """
    n = side or MATMUL[device.type]
    a, b = torch.randn(2, n, n, device=device)

    with autocast(device, precision):
        dtype = torch.mm(a, b).dtype
        a = a.to(dtype)
        b = b.to(dtype)
        times = [seconds(lambda: torch.mm(a, b), device, 1, warm=True) for _ in range(10)]
    return 2 * n**3 / min(times)


if __name__ == "__main__":
    main()
