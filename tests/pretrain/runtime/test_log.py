import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from alice_nnunet.errors import UserError
from alice_nnunet.pretrain.runtime.log import (
    RunLog,
    check_loggers,
    progress_figure,
    tag_of,
    time_left,
)

PANELS = {"spread": ("spread cls",), "losses": ("l_r", "validation l_r"), "none": ("ema",)}


def test_numbers_go_to_tensorboard_and_history(tmp_path):
    history = {}
    log = RunLog(tmp_path, 0, PANELS, {"lr": 0.1, "method": {"head": "dino", "sizes": [1, 2]}})
    log.scalars(3, {"spread cls": 0.5}, history)
    log.scalars(5, {"spread cls": 0.25}, history)
    log.line("hello")
    log.progress(history)
    log.close()

    assert history == {"spread cls": [[3, 0.5], [5, 0.25]]}
    board = EventAccumulator(str(tmp_path)).Reload()
    assert [(e.step, e.value) for e in board.Scalars("spread/cls")] == [(3, 0.5), (5, 0.25)]
    assert "_hparams_/experiment" in board.summary_metadata
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == []

    assert (tmp_path / "training_log.txt").read_text().endswith(": hello\n")
    assert (tmp_path / "progress.png").stat().st_size > 5000


def test_tags_are_grouped_for_a_reader():
    names = ("loss", "l_r", "validation l_r", "spread S", "rank S", "step time", "gradient norm")
    assert [tag_of(name) for name in names] == [
        "loss/total",
        "loss/l_r",
        "loss/l_r_validation",
        "spread/S",
        "rank/S",
        "time/step",
        "optimizer/gradient_norm",
    ]
    assert tag_of("validation found") == "found/validation"


def test_progress_shows_single_values_and_the_warning():
    history = {
        "spread cls": [[10, 0.5]],
        "l_r": [[10, 2.0], [20, 1.5]],
        "validation l_r": [[20, 2]],
    }
    figure = progress_figure(PANELS, history, {"spread": 0.1})
    spread, losses = figure.axes  # nothing is drawn of a panel without values

    lines = {line.get_label(): line for line in spread.lines}
    assert lines["spread cls"].get_marker() == "o" and lines["warning"].get_ydata()[0] == 0.1

    training, validation = losses.lines
    assert training.get_color() == validation.get_color()
    assert (training.get_linestyle(), validation.get_linestyle()) == ("-", "--")
    assert training.get_markerfacecolor() == training.get_color()
    assert validation.get_markerfacecolor() == "none"  # a single value has no line


def test_weights_and_biases_where_it_is_asked_for_and_missing(tmp_path, monkeypatch):
    monkeypatch.setattr("nnunetv2.training.logging.nnunet_logger.wandb", None)
    monkeypatch.setattr("alice_nnunet.pretrain.runtime.log.find_spec", lambda name: None)
    assert RunLog(tmp_path, 0, PANELS).others == []
    check_loggers()

    monkeypatch.setenv("nnUNet_wandb_enabled", "1")
    with pytest.raises(UserError, match="nnUNet_wandb_enabled=1: W&B is not installed"):
        RunLog(tmp_path, 0, PANELS)
    with pytest.raises(UserError, match=r"nnUNet_wandb_enabled=1 asks for .* pip install wandb"):
        check_loggers()

    monkeypatch.setenv("nnUNet_wandb_enabled", "maybe")
    with pytest.raises(UserError, match="nnUNet_wandb_enabled=maybe"):
        RunLog(tmp_path, 0, PANELS)


def test_each_log_has_a_run_of_its_own_in_weights_and_biases(tmp_path, monkeypatch):
    """With a stand-in for the package: one run at a time, as wandb has in a process."""
    wandb = StandIn()
    monkeypatch.setattr("nnunetv2.training.logging.nnunet_logger.wandb", wandb)
    monkeypatch.setenv("nnUNet_wandb_enabled", "1")

    for name, steps in (("anatomy", (20, 40)), ("vit", (3, 6))):
        (tmp_path / name).mkdir()
        log = RunLog(tmp_path / name, 0, PANELS, {"lr": 0.1})
        for step in steps:
            log.scalars(step, {"l_r": 1.0}, {})
        log.close()

    assert [run.name for run in wandb.runs] == ["anatomy", "vit"]
    assert [run.logged for run in wandb.runs] == [[20, 40], [3, 6]]
    assert all(run.config["lr"] == 0.1 and run.finished for run in wandb.runs)


class StandIn:
    def __init__(self):
        self.runs = []

    def init(self, **words):
        if not self.runs or self.runs[-1].finished:
            self.runs.append(StandInRun())
        return self.runs[-1]


class StandInRun:
    def __init__(self):
        self.step = 0
        self.config = {}
        self.summary = {}
        self.logged = []
        self.finished = False
        self.name = None

    def log(self, values, step):
        assert list(values) == ["loss/l_r"] and step >= self.step
        self.step = step
        self.logged.append(step)

    def finish(self):
        self.finished = True


def test_time_left_is_in_hours():
    assert time_left(3725.2) == "1:02:05"
