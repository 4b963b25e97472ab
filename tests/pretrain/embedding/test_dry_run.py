import re
from pathlib import Path

import torch

from alice_nnunet.pretrain.embedding.config import embed_config
from alice_nnunet.pretrain.embedding.dry_run import noise, print_plan, step_bytes
from alice_nnunet.pretrain.embedding.state import build_state

CPU = torch.device("cpu")
SMALL = [
    "features=sam",
    "iterations=10",
    "batch_size=2",
    "points=64",
    "widths=4,4,8,8",
    "channels=4",
    "patch_size=16,32,32",
    "crop_size=20,40,40",
    "voxel=8",
]


def test_the_plan_of_a_training_is_printed(capsys):
    config = embed_config("Dataset001_X", "tiny", SMALL)
    print_plan(config, CPU, Path("folder"), step=4, training=9, held_out=1)

    printed = capsys.readouterr().out
    rows = [line.split(maxsplit=1)[0] for line in printed.splitlines()]
    assert rows == ["results", "data", "batch", "schedule", "saved", "model", "memory", "time"]
    assert "9 training and 1 held-out volumes" in printed
    assert re.search(r"time +0:\d\d:\d\d for 6 steps of [0-9.e-]+ s", printed)
    assert "folder: resumes from step 4" in printed


def test_memory_is_at_least_weights_gradients_and_moments():
    config = embed_config("Dataset001_X", "tiny", SMALL)
    state = build_state(config, CPU)
    weights = 4 * sum(p.numel() for p in state.network.parameters())
    fewer = step_bytes(state, noise(config), config)
    assert fewer > 4 * weights

    larger = embed_config("Dataset001_X", "tiny", [*SMALL, "batch_size=4"])
    assert step_bytes(build_state(larger, CPU), noise(larger), larger) > 1.5 * fewer
