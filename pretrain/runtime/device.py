"""What a training asks of its device: precision, random numbers, memory."""

import sys

import numpy as np
import torch

from alice_nnunet.errors import UserError
from alice_nnunet.memory import GB

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

    auto is bf16 on a GPU that has it, and fp32 elsewhere. CPUs with AVX512-BF16 or AMX are faster
    in bf16 at the paper's sizes, others emulate it slowly.
    """
    bf16 = precision == "bf16"
    if precision == "auto" and device.type == "cuda":
        bf16 = torch.cuda.get_device_capability(device) >= (8, 0)

    return torch.autocast(device.type, torch.bfloat16, enabled=bf16)


def peak_memory(device: torch.device) -> float:
    """GB: the most that tensors have taken on a CUDA device, or that this process has on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / GB
    if resource is None:
        return 0.0

    unit = 1 if sys.platform == "darwin" else 1024  # bytes, of ru_maxrss
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / GB
