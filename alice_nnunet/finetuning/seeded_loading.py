"""nnU-Net's batches in the same order, with the same augmentation, whenever a training starts from the same seed."""

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from batchgenerators.dataloading.data_loader import DataLoader
from batchgenerators.dataloading.multi_threaded_augmenter import MultiThreadedAugmenter
from batchgenerators.dataloading.single_threaded_augmenter import SingleThreadedAugmenter

VARIABLE = "nnUNet_n_proc_DA"  # how many processes nnU-Net makes batches with


class SeededLoader:
    """A loader for worker processes, each of which starts its generators from the seed and its own number."""

    def __init__(self, loader: DataLoader, seed: tuple[int, ...]):
        self.loader, self.seed = loader, seed

    def set_thread_id(self, worker: int) -> None:
        """Called once in each worker, by its number."""
        torch.set_num_threads(1)
        seed_generators(*self.seed, worker)
        self.loader.set_thread_id(worker)

    def __iter__(self):
        return self

    def __next__(self) -> dict:
        return next(self.loader)


def seed_generators(*numbers: int) -> None:
    """Seed the global generators of Python, numpy and torch, from which nnU-Net draws."""
    state = np.random.SeedSequence(numbers).generate_state(3)
    random.seed(int(state[0]))
    np.random.seed(state[1])
    torch.manual_seed(int(state[2]))


@contextmanager
def no_workers() -> Iterator[None]:
    """nnU-Net's loaders that are made inside stay in this process, as if nnUNet_n_proc_DA=0 were set."""
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = "0"
    try:
        yield
    finally:
        os.environ.pop(VARIABLE) if before is None else os.environ.update({VARIABLE: before})


def seeded(
    augmenter: SingleThreadedAugmenter, workers: int, pin_memory: bool, *seed: int
) -> SingleThreadedAugmenter | MultiThreadedAugmenter:
    """The batches of an augmenter from workers, one after the other in turn instead of whichever is ready.

    Without workers they come from this process and its global generators, see seed_generators.
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
