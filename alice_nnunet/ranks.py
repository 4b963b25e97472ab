"""Which part of a batch this process holds where several train together, and what they tell each other.

Alone in a run, a process is rank 0 of 1 and everything here leaves its tensors as they are.
"""

import torch
import torch.distributed as dist
from torch import Tensor


def together() -> bool:
    """Whether this process trains together with others."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def rank() -> int:
    """Number of this process among all, from 0."""
    return dist.get_rank() if together() else 0


def world() -> int:
    """Number of processes."""
    return dist.get_world_size() if together() else 1


def gather_rows(rows: Tensor) -> Tensor:
    """The rows of all processes, in the order of ranks; each has as many. (M, ...) -> (world * M, ...), without gradient."""
    if not together():
        return rows
    parts = [torch.empty_like(rows) for _ in range(world())]
    dist.all_gather(parts, rows.contiguous())
    return torch.cat(parts)


def mean_over_ranks(values: Tensor) -> Tensor:
    """Mean over the processes, element by element; the gradient goes to all of them."""
    return MeanOverRanks.apply(values) if together() else values


class MeanOverRanks(torch.autograd.Function):
    """The mean is its own adjoint: every process gets the mean of the gradients of all."""

    @staticmethod
    def forward(ctx, values: Tensor) -> Tensor:
        return mean_of_ranks(values)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return mean_of_ranks(gradient)


def mean_of_ranks(values: Tensor) -> Tensor:
    """Mean over the processes, without gradient."""
    total = values.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total)
    return total / world()
