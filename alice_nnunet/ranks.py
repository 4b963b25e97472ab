"""Processes that train together: which part of a batch is this one's, and what they exchange.

A process that trains alone is rank 0 of 1, and everything here returns its tensors unchanged.
"""

import torch
import torch.distributed as dist
import torch.nn.functional as F
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
    """Gather the rows of all processes in the order of ranks, without gradient.

    Args:
        rows: (M, ...), as many in each process.

    Returns:
        (world * M, ...).
    """
    if not together():
        return rows

    parts = [torch.empty_like(rows) for _ in range(world())]
    dist.all_gather(parts, rows.contiguous())
    return torch.cat(parts)


def gather_with_gradient(rows: Tensor) -> Tensor:
    """As gather_rows; the gradient goes to the process that each row is of."""
    if not together():
        return rows

    own_place = F.one_hot(torch.tensor(rank()), world()).to(rows)  # (world,)
    apart = own_place.view(-1, *[1] * rows.ndim) * rows[None]  # (world, M, ...)
    return (world() * mean_over_ranks(apart)).flatten(0, 1)


def mean_over_ranks(values: Tensor) -> Tensor:
    """Mean over the processes, element by element. The gradient goes to all of them."""
    return MeanOverRanks.apply(values) if together() else values


class MeanOverRanks(torch.autograd.Function):
    """Mean over the processes.

    The mean is its own adjoint: every process gets the mean of all gradients.
    """

    @staticmethod
    def forward(ctx, values: Tensor) -> Tensor:
        return all_reduced_mean(values)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return all_reduced_mean(gradient)


def all_reduced_mean(values: Tensor) -> Tensor:
    """Mean over the processes, without gradient."""
    total = values.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total)
    return total / world()
