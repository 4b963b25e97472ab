"""The same batches from the same seed, in this process and from workers."""

import os

import numpy as np
import pytest
import torch
from batchgenerators.dataloading.data_loader import DataLoader
from batchgenerators.dataloading.single_threaded_augmenter import SingleThreadedAugmenter

from alice_nnunet.finetuning.seeded_loading import (
    VARIABLE,
    batch_processes,
    seed_generators,
    seeded,
)


class Draws(DataLoader):
    """Batches drawn from the two generators that nnU-Net's loader and its transforms draw from."""

    def __init__(self):
        super().__init__(None, 2, infinite=True)

    def generate_train_batch(self) -> dict:
        return {"data": torch.rand(3).numpy(), "keys": np.random.randint(0, 1000, 3).tolist()}


def first(augmenter, count: int) -> list:
    return [
        (batch["data"].tolist(), batch["keys"]) for batch in (next(augmenter) for _ in range(count))
    ]


@pytest.mark.parametrize("workers", [0, 3])
def test_a_seed_gives_the_same_batches_and_another_gives_others(workers):
    runs = []
    for seed in ((1, 0), (1, 0), (1, 1)):
        made = SingleThreadedAugmenter(Draws(), None)
        next(made)  # as nnU-Net does

        seed_generators(*seed)
        augmenter = seeded(made, workers, False, *seed)
        runs.append(first(augmenter, 9))
        if workers:
            augmenter._finish()
    assert runs[0] == runs[1] and not any(a in runs[2] for a in runs[0])
    assert len({str(batch) for batch in runs[0]}) == 9  # no two workers draw the same


@pytest.mark.parametrize("before", ["5", None])
def test_the_number_of_workers_is_another_for_a_while(monkeypatch, before):
    if before:
        monkeypatch.setenv(VARIABLE, before)
    else:
        monkeypatch.delenv(VARIABLE, raising=False)

    with batch_processes("0"):
        assert os.environ[VARIABLE] == "0"
    assert os.environ.get(VARIABLE) == before
