"""The device of a computation that is no pretraining, and its precision."""

import os

import torch

from alice_nnunet.errors import UserError


def chosen_device(name: str | None) -> torch.device:
    """The device called name, or cuda if available, else the CPU.

    Raises:
        UserError: it is cuda, and there is none.
    """
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise UserError("-device cuda: torch finds no CUDA device here; use -device cpu")
    return torch.device(name or ("cuda" if available else "cpu"))


def cpu_has_bf16() -> bool:
    """Whether this CPU multiplies matrices of bf16 (AVX512-BF16 or AMX). Others emulate it slowly.

    The functions have no public counterpart in the oldest torch that is supported.
    """
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def keep_to_omp_num_threads() -> None:
    """Compute in no more threads than OMP_NUM_THREADS says, where it is set.

    nnU-Net's commands take all cores of a CPU whatever it says. Processes that share the cores then
    wait for each other.
    """
    asked = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    if asked.isdigit() and 0 < int(asked) < torch.get_num_threads():
        torch.set_num_threads(int(asked))


def half_precision(device: torch.device) -> torch.autocast:
    """bf16 on a GPU that has it, and fp32 elsewhere."""
    has_bf16 = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
    return torch.autocast(device.type, torch.bfloat16, enabled=has_bf16)
