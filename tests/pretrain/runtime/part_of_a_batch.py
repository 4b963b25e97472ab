"""Run once for each process by test_distributed.py: two steps on this process's part of a batch.

part_of_a_batch.py OUT METHODS

METHODS is a JSON list of lists of name=value, one for each method; process 0 writes OUT. The first
of them may be `method=NAME` for another method than Alice.
"""

import json
import sys
from dataclasses import replace

import numpy as np
import torch

from alice_nnunet.data.pairs import PairBatch
from alice_nnunet.pretrain.runtime.distributed import own_share, team
from alice_nnunet.pretrain.training.state import build_state
from alice_nnunet.pretrain.training.step import train_step
from alice_nnunet.ranks import rank, world
from tests.helpers.pretraining import (
    CPU,
    FROZEN,
    SPACING,
    gradients_of,
    method_config,
    pair_batch,
    small_config,
)

PAIRS = 4
CROP = (48, 32, 32)


def part(step: int) -> PairBatch:
    """This process's pairs; pair number i is the same however many processes there are."""
    pairs = [
        torch.from_numpy(np.random.default_rng(number).random((2, 1, *CROP), np.float32))
        for number in own_share(step, PAIRS // world())
    ]
    query, key = torch.stack(pairs, 1)
    batch = pair_batch(query, key)
    anatomy = [
        crops[:, 0, :12, 0, :32] * (crops[:, 0, :12, 1, :1] > 0.3) for crops in (query, key)
    ]  # some tokens are outside the body
    return replace(batch, query_anatomy=anatomy[0], key_anatomy=anatomy[1])


def two_steps(method: list[str]) -> dict:
    """What the second step logs, its gradients, and the buffers after it."""
    crop = ",".join(map(str, CROP))
    settings = [f"crop_size={crop}", f"batch_size={PAIRS // world()}", *FROZEN]
    if method and method[0].startswith("method="):
        name = method[0].removeprefix("method=")
        config = method_config(name, "vit", *settings, *method[1:])
    else:
        config = small_config(*settings, *method)
    state = build_state(config, CPU)
    train_step(state, part(0), config, SPACING)  # moves the centers
    result = train_step(state, part(1), config, SPACING)

    scalars = result.scalars()
    del scalars["rejected"], scalars["unmatched"]  # of this process alone
    return {
        "scalars": scalars,
        "second_moments": result.second_moments,
        "gradients": gradients_of(state.model),
        "buffers": dict(state.model.named_buffers()),
    }


if __name__ == "__main__":
    with team(CPU):
        results = [two_steps(method) for method in json.loads(sys.argv[2])]
        if rank() == 0:
            torch.save(results, sys.argv[1])
