from pathlib import Path

import pytest

from alice_nnunet.pretrain.runtime import estimate
from alice_nnunet.pretrain.training import dry_run
from alice_nnunet.pretrain.training.config import PretrainConfig, make_config, read_settings
from alice_nnunet.pretrain.training.dry_run import (
    bytes_of_pairs,
    checkpoint_bytes,
    step_bytes,
    step_seconds,
)
from alice_nnunet.pretrain.training.state import build_state, save_state
from alice_nnunet.pretrain.training.step import train_step
from tests.helpers.pretraining import CPU, SPACING, noise


def tiny_config(*more: str) -> PretrainConfig:
    """The tiny preset on small crops."""
    return make_config("Dataset001_X", read_settings("vit", "tiny", ["crop_size=32,32,32", *more]))


def test_a_checkpoint_is_as_long_as_foretold(tmp_path):
    config = tiny_config("batch_size=2")
    state = build_state(config, CPU)
    train_step(state, noise(), config, SPACING)
    save_state(tmp_path / "c.pth", state, config, {}, {})
    assert (tmp_path / "c.pth").stat().st_size == pytest.approx(checkpoint_bytes(state), rel=0.02)


def test_memory_is_weights_gradients_and_moments_and_grows_by_the_pair():
    # With the default objective, gradients outweigh one pair of crops as small as these, and a step
    # is then highest elsewhere than with more pairs.
    config = tiny_config("dv_by=crop", "weight_st=1")
    model = build_state(config, CPU).model
    weights = 4 * sum(p.numel() for p in model.parameters())
    trained = 4 * sum(p.numel() for p in model.parameters() if p.requires_grad)
    buffers = 4 * sum(b.numel() for b in model.buffers())

    state = build_state(config, CPU)
    fixed, pair = step_bytes(state, config)

    assert fixed == weights + buffers + 3 * trained
    assert pair > 4 * 4 * 32**3  # the views alone
    kept_two, peak_two = bytes_of_pairs(state, config, 2)
    kept_six, peak_six = bytes_of_pairs(state, config, 6)
    assert max(kept_six - kept_two, peak_six - peak_two) == pytest.approx(4 * pair, rel=0.1)
    assert all(p.grad is None for p in state.model.parameters())


def test_recomputed_blocks_take_less():
    plain = tiny_config()
    recomputing = tiny_config("checkpoint_blocks=true")
    _, pair = step_bytes(build_state(plain, CPU), plain)
    _, less = step_bytes(build_state(recomputing, CPU), recomputing)
    assert less < 0.9 * pair


def test_the_time_of_a_step_is_that_of_all_its_pairs(monkeypatch):
    config = tiny_config("batch_size=8", "accumulate=2")
    state = build_state(config, CPU)

    def two_seconds(step) -> float:
        step()
        assert state.step == 1
        return 2.0

    monkeypatch.setattr(dry_run, "fastest_of_two", two_seconds)
    assert step_seconds(state, config) == 8.0  # timed with 2 of 8 pairs


def test_the_first_of_three_steps_warms_up_and_the_faster_counts(monkeypatch):
    clock = iter([0.0, 1.0, 10.0, 15.0, 20.0, 23.0])
    calls = []
    monkeypatch.setattr(estimate.time, "perf_counter", lambda: next(clock))
    assert estimate.fastest_of_two(lambda: calls.append(1)) == 3.0 and len(calls) == 3


def test_rows_are_printed_as_soon_as_they_are_known(monkeypatch, capsys):
    config = tiny_config("batch_size=8", "accumulate=2")
    before = {}

    def note(name):
        before[name] = [line.split()[0] for line in capsys.readouterr().out.splitlines()]

    def memory(state, config):
        note("memory")
        return 1_000_000_000, 500_000_000

    def time(step):
        note("time")
        return 1.0

    monkeypatch.setattr(dry_run, "step_bytes", memory)
    monkeypatch.setattr(dry_run, "fastest_of_two", time)
    dry_run.print_plan(config, CPU, 1, Path("runs") / "vit", step=0, training=9)

    assert before["memory"] == ["results", "data", "batch", "schedule", "model", "saved"]
    assert before["time"] == ["memory"]
    assert " for 2000 steps of 4 s, by the fastest of two steps with 2" in capsys.readouterr().out
