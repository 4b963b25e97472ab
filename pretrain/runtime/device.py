"""What a training asks of its device: precision, random numbers, memory."""

import sys

import numpy as np
import torch

from alice_nnunet.errors import UserError
from alice_nnunet.memory import GB
from alice_nnunet.settings.device import cpu_has_bf16

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]  # the usual way to mark it absent

# Streams of random numbers
TRAINING = 0
VALIDATION = 1
PROBE = 2


FOR_CPUS = "tiny"  # the preset that a CPU can train


def choose_device(name: str | None, preset: str, only_asked: bool = False) -> torch.device:
    """The device called name, or cuda if available.

    Args:
        name: cpu, cuda, or None for cuda where there is one.
        preset: tiny, small or paper.
        only_asked: whether nothing is trained (--dry-run).

    Raises:
        UserError: it is cuda and absent, or the preset needs a GPU and no device was named.
    """
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise UserError("-device cuda: torch finds no CUDA device here; use -device cpu")

    device = torch.device(name or ("cuda" if available else "cpu"))
    if device.type == "cpu" and preset != FOR_CPUS:
        too_slow = f"preset {preset} is made for a GPU: on a CPU it takes weeks to months"
        if name is None and not only_asked:
            raise UserError(
                f"{too_slow}, and torch finds no CUDA device here. Try everything out with "
                f"-preset {FOR_CPUS}, estimate the time with --dry-run, or insist with -device cpu"
            )
        print(f"NOTE: {too_slow}. Preset {FOR_CPUS} is made for a CPU", flush=True)
    return device


def generator_at(seed: int, stream: int, step: int, device: torch.device) -> torch.Generator:
    """The random generator of one step: the same numbers whether or not the run was interrupted."""
    words = np.random.SeedSequence((seed, stream, step)).generate_state(2, np.uint32)
    return torch.Generator(device).manual_seed(int(words[0]) << 31 | int(words[1]) >> 1)


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The autocast context of a precision: auto, fp32 or bf16.

    New runs record fp32 or bf16, see settled_precision. auto is in configs of earlier versions:
    bf16 on a GPU that has it, and fp32 elsewhere.
    """
    bf16 = settled_precision(precision, device, pays_on_cpu=False) == "bf16"
    return torch.autocast(device.type, torch.bfloat16, enabled=bf16)


def settled_precision(precision: str, device: torch.device, pays_on_cpu: bool) -> str:
    """What a new run computes in, fp32 or bf16.

    Args:
        precision: what is asked for: auto, fp32 or bf16. auto is bf16 where the device has it.
        device: of the run.
        pays_on_cpu: whether bf16 was measured to be faster on CPUs that have it.
    """
    if precision != "auto":
        return precision
    if device.type == "cuda":
        has_bf16 = torch.cuda.get_device_capability(device) >= (8, 0)
    else:
        has_bf16 = pays_on_cpu and cpu_has_bf16()
    return "bf16" if has_bf16 else "fp32"


def warn_of_emulation(device: torch.device, precision: str) -> None:
    """Say so where a training in bf16 is on a CPU that only emulates it."""
    if device.type == "cpu" and precision == "bf16" and not cpu_has_bf16():
        print(
            "WARNING: this CPU has no bf16 (neither AVX512-BF16 nor AMX) and emulates it, several "
            "times slower than fp32. Go on where a GPU or CPU has it, or start a new training with "
            "--set precision=fp32",
            flush=True,
        )


def peak_memory(device: torch.device) -> float:
    """GB: the most that tensors have taken on a CUDA device, or that this process has on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / GB
    if resource is None:
        return 0.0

    unit = 1 if sys.platform == "darwin" else 1024  # bytes, of ru_maxrss
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / GB
