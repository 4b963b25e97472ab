"""The loop, driven with a training of which every step is one number."""

import json
import os
import signal
from dataclasses import dataclass

import pytest
import torch

from alice_nnunet.names import FINAL, LATEST
from alice_nnunet.pretrain.runtime.steps import (
    NONFINITE_CASES,
    NonFiniteLoss,
    Schedule,
    TrainingState,
    run_steps,
)


@dataclass
class Result:
    loss: torch.Tensor

    @property
    def gradient_norm(self) -> torch.Tensor:
        return self.loss

    @property
    def finite(self) -> bool:
        return bool(torch.isfinite(self.loss))

    def scalars(self) -> dict:
        return {"loss": self.loss}


class Log:
    """Its lines, and what was called when, as (what, step)."""

    def __init__(self):
        self.lines = []

    def line(self, text):
        self.lines.append(text)

    def progress(self, history):
        self.lines.append("progress")


class Training:
    """losses: of the steps. sends: step -> the signal that comes while it is computed."""

    how_to_resume = "Resume it"

    def __init__(self, folder, losses, sends=None, **schedule):
        self.folder = folder
        self.losses = losses
        self.sends = sends or {}
        intervals = {"log_every": 2, "validate_every": 3, "save_every": 2, "probe_every": 3}
        self.schedule = Schedule(steps=len(losses), **(intervals | schedule))
        self.state = TrainingState(optimizer=None, device=torch.device("cpu"))
        self.done = []
        self.closed = False

    def training_batches(self):
        try:
            yield from range(self.state.step, len(self.losses))
        finally:
            self.closed = True

    def take_step(self, batch):
        if batch in self.sends:
            os.kill(os.getpid(), self.sends[batch])
        result = Result(torch.tensor(self.losses[batch]))
        self.state.count_step(result.finite)
        return result

    def cases_of(self, batch):
        return {"cases": [f"case{batch}"]}

    def agree_to_stop(self, number):
        return number

    def report(self, log, means):
        assert set(means) == {"loss", "data time", "step time"}
        self.done.append(("report", self.state.step, means["loss"]))

    def probe(self, log):
        self.done.append(("probe", self.state.step))

    def validate(self, log):
        self.done.append(("validate", self.state.step))

    def save(self, path):
        self.done.append((path.name, self.state.step))


def test_everything_is_done_when_it_is_due_and_at_the_end(tmp_path):
    training = Training(tmp_path, [1.0, 3.0, 5.0, 7.0, 9.0])
    log = Log()
    assert run_steps(training, log) == 0
    assert training.done == [
        ("report", 2, 2.0),
        (LATEST, 2),
        ("probe", 3),
        ("validate", 3),
        ("report", 4, 6.0),
        (LATEST, 4),
        ("report", 5, 9.0),
        ("probe", 5),
        ("validate", 5),
        (FINAL, 5),
    ]
    assert log.lines == ["progress", "progress", f"finished after 5 steps: {tmp_path / FINAL}"]
    assert training.closed


def test_zero_is_never(tmp_path):
    training = Training(tmp_path, [1.0, 2.0], probe_every=0)
    run_steps(training, Log())
    assert "probe" not in {name for name, *_ in training.done}


def test_a_process_without_a_log_only_computes(tmp_path):
    training = Training(tmp_path, [1.0, float("nan"), 2.0])
    assert run_steps(training, None) == 0
    assert training.state.step == 3 and not training.done and not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_lets_the_step_end_and_saves_it(tmp_path, number):
    training = Training(tmp_path, [1.0, 3.0, 5.0, 7.0], sends={2: number})
    log = Log()
    assert run_steps(training, log) == number
    # after step 3 a validation is due, for which there is no time
    assert training.done == [("report", 2, 2.0), (LATEST, 2), (LATEST, 3)]
    name = signal.Signals(number).name
    assert log.lines == [f"stopped by {name} after step 3, which is saved. Resume it"]
    assert training.closed


def test_a_signal_in_the_last_step_comes_too_late(tmp_path):
    training = Training(tmp_path, [1.0, 3.0], sends={1: signal.SIGTERM})
    assert run_steps(training, Log()) == 0
    assert training.done[-1] == (FINAL, 2)


def test_all_processes_stop_when_one_is_asked_to(tmp_path):
    training = Training(tmp_path, [1.0, 3.0, 5.0])
    training.agree_to_stop = lambda number: signal.SIGUSR1 if training.state.step == 2 else 0
    assert run_steps(training, None) == signal.SIGUSR1 and training.state.step == 2


def test_skipped_steps_are_written_down_and_are_in_no_mean(tmp_path):
    training = Training(tmp_path, [1.0, float("nan"), 5.0, float("inf")])
    log = Log()
    run_steps(training, log)

    reports = [entry for entry in training.done if entry[0] == "report"]
    assert reports == [("report", 2, 1.0), ("report", 4, 5.0)]
    lines = (tmp_path / NONFINITE_CASES).read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"step": 1, "loss": "nan", "gradient norm": "nan", "cases": ["case1"]},
        {"step": 3, "loss": "inf", "gradient norm": "inf", "cases": ["case3"]},
    ]
    warnings = [line for line in log.lines if "was skipped" in line]
    assert len(warnings) == 2 and "step 1 was skipped: loss nan" in warnings[0]


def test_too_many_skipped_steps_in_a_row_end_the_training(tmp_path):
    nan = float("nan")
    training = Training(tmp_path, [nan, 1.0, nan, nan, 1.0], max_nonfinite=2)
    with pytest.raises(
        NonFiniteLoss, match="2 steps in a row were skipped, the last with loss nan"
    ):
        run_steps(training, Log())
    assert training.state.step == 4 and training.closed
    assert len((tmp_path / NONFINITE_CASES).read_text().splitlines()) == 3


def test_a_training_that_goes_on_takes_the_rest_of_the_steps(tmp_path):
    training = Training(tmp_path, [1.0, 3.0, 5.0, 7.0])
    training.state.step = 3
    run_steps(training, Log())
    assert training.done[0] == ("report", 4, 7.0) and training.state.step == 4
