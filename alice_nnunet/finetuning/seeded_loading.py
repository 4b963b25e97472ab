"""The same batches of nnU-Net, in order and augmentation, whenever a training has the same seed."""

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from batchgenerators.dataloading.data_loader import DataLoader
from batchgenerators.dataloading.multi_threaded_augmenter import MultiThreadedAugmenter
from batchgenerators.dataloading.single_threaded_augmenter import SingleThreadedAugmenter

VARIABLE = "nnUNet_n_proc_DA"  # number of processes that make nnU-Net's batches


class SeededLoader:
    """A loader whose workers seed their generators with a seed and their own number."""

    def __init__(self, loader: DataLoader, seed: tuple[int, ...]):
        self.loader = loader
        self.seed = seed

    def set_thread_id(self, worker: int) -> None:
        """Called once in each worker with its number."""
        torch.set_num_threads(1)
        seed_generators(*self.seed, worker)
        self.loader.set_thread_id(worker)

    def __iter__(self):
        return self

    def __next__(self) -> dict:
        return next(self.loader)


def seed_generators(*numbers: int) -> None:
    """Seed the global generators of Python, numpy and torch, which nnU-Net uses."""
    state = np.random.SeedSequence(numbers).generate_state(3)

    random.seed(int(state[0]))
    np.random.seed(state[1])
    torch.manual_seed(int(state[2]))


@contextmanager
def batch_processes(count: str) -> Iterator[None]:
    """Inside the block nnU-Net makes batches with count processes; "0" for this one alone."""
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = count
    try:
        yield
    finally:
        if before is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = before


def seeded(
    augmenter: SingleThreadedAugmenter, workers: int, pin_memory: bool, *seed: int
) -> SingleThreadedAugmenter | MultiThreadedAugmenter:
    """Move the batches of an augmenter into worker processes, always in the same order.

    Args:
        augmenter: nnU-Net's, in this process.
        workers: processes, which take turns instead of whichever is ready; with 0 the batches come
            from this process and its global generators, see seed_generators.
        pin_memory: for a CUDA device.
        *seed: numbers that start the generators of the workers.
    """
    if not workers:
        return augmenter

    return MultiThreadedAugmenter(
        SeededLoader(augmenter.data_loader, seed),
        None,
        workers,
        pin_memory=pin_memory,
        wait_time=0.002,
    )
