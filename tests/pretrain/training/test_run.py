import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from alice_nnunet.model.losses import second_moments
from alice_nnunet.model.methods.alice import hints_for
from alice_nnunet.model.pretraining.settings import AliceSettings
from alice_nnunet.pretrain.training.feature_ranks import lowest_rank
from alice_nnunet.pretrain.training.organ_probe import POINTS, LabeledPerson
from alice_nnunet.pretrain.training.run import EARLY_STEPS, Run
from alice_nnunet.pretrain.training.state import build_state
from tests.helpers.pretraining import CPU, PAPER, SPACING, noise, small_config

NAMES = ("loss", "l_r", "l_dv", "l_st", "gradient norm", "content", "data time", "step time")


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
    run.state.step = EARLY_STEPS + 1
    spreads = {"spread cls": 0.5, "spread S": 0.5, "spread T": spread}
    run.report(log, {**dict.fromkeys(NAMES, 1.0), **spreads, "rejected": 1.0, "unmatched": 0.25})
    assert log.values["rejection rate"] == 0.5 and "rejected" not in log.values
    assert any("| rejected 50% unmatched 25% content 100% |" in line for line in log.lines)
    assert any("collapse: spread(T) = 0.09" in line for line in log.lines) == warns

    # It is said once for each fall.
    for value in (spread, 0.5, spread):
        means = {**dict.fromkeys(NAMES, 1.0), **spreads, "spread T": value}
        run.report(log, {**means, "rejected": 1.0, "unmatched": 0.25})
    assert sum("WARNING" in line for line in log.lines) == 2 * warns


def test_low_spreads_are_normal_at_the_start_and_a_warning_if_they_stay(run):
    log = Log()
    spreads = {"spread cls": 0.5, "spread S": 0.01, "spread T": 0.5}
    for step in (20, 40, EARLY_STEPS, EARLY_STEPS + 20, EARLY_STEPS + 40):
        run.state.step = step
        run.report(
            log, {**dict.fromkeys(NAMES, 1.0), **spreads, "rejected": 1.0, "unmatched": 0.25}
        )

    said = [line[:7] for line in log.lines if not line.startswith("step")]
    assert said == ["NOTE: f", "WARNING"]


def test_the_rank_is_over_all_steps_since_the_last_report(run):
    vectors = torch.randn(3, 10, 4, generator=torch.Generator().manual_seed(0))
    flat = torch.randn(3, 10, 1).sign() * torch.ones(4)
    for step in range(3):
        moments = {"V": second_moments(vectors[step]), "cls": second_moments(flat[step])}
        run.feature_ranks.add(moments, crops=10)

    log = Log()
    means = {**dict.fromkeys(NAMES, 1.0), "rejected": 0.0, "unmatched": 0.0}
    run.report(log, dict(means))

    unit = torch.nn.functional.normalize(vectors.flatten(0, 1), dim=1).double().numpy()
    variances = np.linalg.eigvalsh(np.cov(unit, rowvar=False))
    shares = variances / variances.sum()
    expected = np.exp(-(shares * np.log(shares)).sum())
    assert log.values["rank V"] == pytest.approx(expected, rel=1e-5)
    assert f"| rank cls 1.0 S off T off V {expected:.1f} |" in log.lines[0]
    assert "rank(cls) = 1.0 (threshold 1.4 for 30 crops)" in log.lines[1]

    run.report(log, dict(means))
    assert "| rank cls off S off T off V off |" in log.lines[2] and len(log.lines) == 3


def test_the_least_rank_follows_from_the_number_of_crops():
    assert lowest_rank(crops=2, channels=256) == 1  # two samples always lie on one line
    assert lowest_rank(crops=82, channels=256) == pytest.approx(3)
    assert lowest_rank(crops=10_000, channels=256) == 4


def test_a_term_that_is_off_is_shown_as_off_and_does_not_warn(run):
    log = Log()
    names = [name for name in NAMES if name not in ("l_dv", "l_st")]
    run.report(log, {**dict.fromkeys(names, 1.0), "rejected": 0.0, "unmatched": 0.0})
    assert len(log.lines) == 1
    assert "l_r 1.0000 l_dv off l_st off | spread cls off S off T off |" in log.lines[0]
    assert not [name for name in log.values if "spread" in name or name in ("l_dv", "l_st")]


def test_pairs_that_do_not_match_are_written_down_once(run, tmp_path):
    run.folder = tmp_path
    kinds = ["matched", "two crops of the same scan"]
    batch = replace(noise(), kind=kinds, score=torch.tensor([0.9, torch.nan]))

    for step in range(4):
        run.state.step = step
        run.note_unmatched(replace(batch, kind=["matched"] * 2) if step == 1 else batch)

    def steps() -> list[int]:
        lines = (tmp_path / "unmatched.jsonl").read_text().splitlines()
        entries = [json.loads(line) for line in lines]
        for entry in entries:
            assert (entry["query"], entry["key"], entry["kind"]) == ("q1", "k1", kinds[1])
            assert entry["score"] is None
        return [entry["step"] for entry in entries]

    assert steps() == [0, 2, 3]
    run.state.step = 2  # resumed from an earlier checkpoint: steps 2 and 3 come again
    run.forget_later_unmatched()
    assert steps() == [0]


def test_the_cases_of_a_step_are_its_pairs(run):
    assert run.cases_of(noise()) == {"pairs": [("q0", "k0"), ("q1", "k1")]}


def test_without_held_out_cases_nothing_is_validated_or_probed(run):
    run.read_validation(Log())
    log = Log()
    run.validate(log)
    run.probe(log)
    assert log.lines == [
        "seen since the start of this process | 0 of 2 scans, 0 of 2 ordered pairs of scans (0.0%)"
    ]


def test_organs_of_labeled_people_are_probed_without_held_out_cases(run):
    rng = np.random.default_rng(0)
    image = rng.random((1, 40, 40, 40), np.float32)
    points = {organ: rng.integers(10, 30, (POINTS, 3)) for organ in (1, 4)}
    run.people = [LabeledPerson(name, image, points) for name in ("a", "b")]  # the same: all found
    log = Log()
    run.probe(log)
    assert re.fullmatch(r"probe \| organs \d\.\d\d retrieval 1\.00 chance 0\.50", log.lines[0])
    assert len(log.lines) == 1
    assert log.values["probe chance"] == 0.5


def test_what_was_seen_is_counted(run):
    log = Log()
    run.training = ["q0", "k0", "k1", "other"]
    run.seen = {("q0", "k0"), ("k0", "q0"), ("k1", "k1")}
    run.log_seen(log)
    assert "| 3 of 4 scans, 2 of 12 ordered pairs of scans (16.7%)" in log.lines[0]


def test_the_log_explains_the_losses_that_are_computed():
    default = " ".join(hints_for(AliceSettings()))
    assert "l_dv asks" in default and "l_an" in default and "l_st" not in default

    paper = " ".join(hints_for(AliceSettings(**PAPER)))
    assert "l_st and l_dv" in paper and "l_an" not in paper

    alone = hints_for(AliceSettings(weight_dv=0, weight_an=0))
    assert len(alone) == 1 and "l_r" in alone[0]
