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


def choose_device(name: str | None) -> torch.device:
    """The device called name, or cuda if available. Raises UserError if it is cuda and absent."""
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise UserError("-device cuda: torch finds no CUDA device here; use -device cpu")
    return torch.device(name or ("cuda" if available else "cpu"))


def generator_at(seed: int, stream: int, step: int, device: torch.device) -> torch.Generator:
    """The random generator of one step: the same numbers whether or not the run was interrupted."""
    words = np.random.SeedSequence((seed, stream, step)).generate_state(2, np.uint32)
    return torch.Generator(device).manual_seed(int(words[0]) << 31 | int(words[1]) >> 1)


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The autocast context of a precision: auto, fp32 or bf16.

    auto is bf16 on a GPU that has it, and fp32 elsewhere: a CPU emulates bf16 slowly.
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
