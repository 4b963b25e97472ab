from pathlib import Path

import pytest

from alice_nnunet.pretrain.training.run import Run
from alice_nnunet.pretrain.training.state import build_state
from tests.helpers.pretraining import CPU, SPACING, noise, small_config

NAMES = ("loss", "l_r", "l_dv", "l_st", "gradient norm", "data time", "step time")


class Log:
    def __init__(self):
        self.lines = []

    def line(self, text):
        self.lines.append(text)

    def scalars(self, step, values, history):
        self.values = values


@pytest.fixture
def run() -> Run:
    config = small_config()
    return Run(
        config,
        build_state(config, CPU),
        volumes=Path(),
        folder=Path(),
        spacing=SPACING,
        data={},
        adaptation_plan={},
        training=["a", "b"],
        held_out=[],
        workers=0,
    )


@pytest.mark.parametrize("spread, warns", [(0.09, True), (0.11, False)])
def test_collapse_warns(run, spread, warns):
    log = Log()
    spreads = {"spread cls": 0.5, "spread S": 0.5, "spread T": spread}
    run.report(log, {**dict.fromkeys(NAMES, 1.0), **spreads, "rejected": 1.0})
    assert log.values["rejection rate"] == 0.5 and "rejected" not in log.values
    assert any("collapse: spread(T) = 0.09" in line for line in log.lines) == warns


def test_the_cases_of_a_step_are_its_pairs(run):
    assert run.cases_of(noise()) == {"pairs": [("q0", "k0"), ("q1", "k1")]}


def test_without_held_out_cases_nothing_is_validated_or_probed(run):
    run.read_validation(Log())
    log = Log()
    run.validate(log)
    run.probe(log)
    assert not log.lines
