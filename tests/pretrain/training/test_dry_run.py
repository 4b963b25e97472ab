import time

import pytest
import torch

from alice_nnunet.pretrain.training.config import make_config, read_settings
from alice_nnunet.pretrain.training.dry_run import (
    bytes_of_pairs,
    checkpoint_bytes,
    step_bytes,
    step_seconds,
)
from alice_nnunet.pretrain.training.state import build_state, save_state
from alice_nnunet.pretrain.training.step import train_step

CPU = torch.device("cpu")


def config(*more: str):
    return make_config("Dataset001_X", read_settings("vit", "tiny", ["crop_size=32,32,32", *more]))


def test_a_checkpoint_is_as_long_as_foretold(tmp_path):
    c = config("batch_size=2")
    state = build_state(c, CPU)
    crops = torch.rand(2, 2, 1, 32, 32, 32)
    train_step(
        state,
        {"query": crops[0], "key": crops[1], "query_case": "ab", "key_case": "cd"},
        c,
        (3.0, 3.0, 3.0),
    )
    save_state(tmp_path / "c.pth", state, c, {}, {})
    assert (tmp_path / "c.pth").stat().st_size == pytest.approx(checkpoint_bytes(state), rel=0.02)


def test_memory_is_weights_gradients_and_moments_and_grows_by_the_pair():
    state = build_state(config(), CPU)
    weights, trained = (
        4 * sum(p.numel() for p in state.model.parameters() if p.requires_grad or everything)
        for everything in (True, False)
    )
    fixed, each = step_bytes(state, config())
    buffers = 4 * sum(b.numel() for b in state.model.buffers())
    assert fixed == weights + buffers + 3 * trained
    assert each > 4 * 4 * 32**3  # the views alone
    kept = [bytes_of_pairs(state, config(), pairs)[0] for pairs in (2, 6)]
    assert kept[1] - kept[0] == pytest.approx(4 * each, rel=0.1)
    assert all(p.grad is None for p in state.model.parameters())


def test_recomputed_blocks_take_less():
    plain, less = (
        step_bytes(build_state(c, CPU), c)[1] for c in (config(), config("checkpoint_blocks=true"))
    )
    assert less < 0.9 * plain


def test_the_time_of_a_step_is_that_of_a_step():
    c = config("batch_size=8", "accumulate=2")
    state = build_state(c, CPU)
    foretold, crops, times = step_seconds(state, c), torch.rand(2, 8, 1, 32, 32, 32), []
    for _ in range(4):
        start = time.perf_counter()
        train_step(
            state,
            {"query": crops[0], "key": crops[1], "query_case": "", "key_case": ""},
            c,
            (3.0, 3.0, 3.0),
        )
        times.append(time.perf_counter() - start)
    assert (
        min(times) / 4 < foretold < 20 * max(times)
    )  # a step of 8 pairs, not of 2, nor a whole run
