"""Run once for each process by test_distributed.py: two steps on this process's part of a batch, for each of some methods.

part_of_a_batch.py OUT METHODS      METHODS: JSON list of lists of name=value; process 0 writes OUT
"""

import json
import sys

import numpy as np
import torch

from alice_nnunet.pretrain.training.config import PretrainConfig, make_config, read_settings
from alice_nnunet.pretrain.runtime.distributed import own_share, team
from alice_nnunet.pretrain.training.state import build_state
from alice_nnunet.pretrain.training.step import train_step
from alice_nnunet.ranks import rank, world

PAIRS, SPACING = 4, (3.0, 3.0, 3.0)
SMALL = [
    "iterations=10",
    "width=24",
    "depth=2",
    "heads=2",
    "decoder_width=24",
    "decoder_depth=1",
    "decoder_heads=2",
    "head_hidden=32",
    "crop_size=32,32,48",
    "clip_grad=1000000.0",
]


def config(*more: str) -> PretrainConfig:
    return make_config(
        "Dataset001_X",
        read_settings("vit", "tiny", [*SMALL, f"batch_size={PAIRS // world()}", *more]),
    )


def batch(step: int) -> dict:
    """This process's pairs; pair number i is the same however many processes there are."""
    pairs = [
        torch.from_numpy(np.random.default_rng(i).random((2, 1, 32, 32, 48), np.float32))
        for i in own_share(step, PAIRS // world())
    ]
    query, key = torch.stack(pairs, 1)
    return {
        "query": query,
        "key": key,
        "query_case": ["q"] * len(query),
        "key_case": ["k"] * len(query),
    }


def two_steps(settings: list[str]) -> dict:
    """What the second step logs, its gradients and the weights after it."""
    c = config(*settings)
    state = build_state(c, torch.device("cpu"))
    train_step(state, batch(0), c, SPACING)
    numbers = train_step(state, batch(1), c, SPACING)
    return {
        "numbers": numbers,
        "model": state.model.state_dict(),
        "gradients": {
            name: p.grad for name, p in state.model.named_parameters() if p.grad is not None
        },
    }


if __name__ == "__main__":
    with team(torch.device("cpu")):
        results = [two_steps(settings) for settings in json.loads(sys.argv[2])]
        if rank() == 0:
            torch.save(results, sys.argv[1])
