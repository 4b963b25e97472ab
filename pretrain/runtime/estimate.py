"""What --dry-run of both trainings measures and prints."""

import time
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from alice_nnunet.planning.request import CUDA_GB, WORKSPACES
from alice_nnunet.pretrain.runtime.log import time_left


def print_row(name: str, text: str) -> None:
    print(f"{name:9} {text}", flush=True)


def precision_name(device: torch.device, context: torch.autocast) -> str:
    """What a step computes in within an autocast context: bf16 or fp32."""
    with context:
        return "bf16" if torch.is_autocast_enabled(device.type) else "fp32"


def beside_tensors(device: torch.device) -> str:
    """What the memory of a step's tensors does not include."""
    if device.type == "cuda":
        return f"up to {WORKSPACES:.0%} more for workspaces, and about {CUDA_GB:g} GB for CUDA"
    return "what Python and its libraries take comes on top"


def millions(module: nn.Module) -> str:
    """'0.3 M', of parameters; '1,024' where there are few."""
    number = sum(parameter.numel() for parameter in module.parameters())
    return f"{number / 1e6:.1f} M" if number >= 1e5 else f"{number:,}"


def tensor_bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def gradient_bytes(module: nn.Module) -> int:
    """Bytes of the gradients of what is trained; each of AdamW's two moments takes as many."""
    return tensor_bytes(p for p in module.parameters() if p.requires_grad)


def fastest_of_two(step: Callable[[], None]) -> float:
    """Seconds of the faster of two calls, after one to warm up."""
    times = []
    for _ in range(3):
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return min(times[1:])


def time_for(steps: int, seconds: float) -> str:
    """'0:00:12 for 24 steps of 0.5 s'."""
    return f"{time_left(steps * seconds)} for {steps} steps of {seconds:.3g} s"
