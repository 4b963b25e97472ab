import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from alice_nnunet.errors import UserError
from alice_nnunet.pretrain.runtime.log import RunLog, time_left

PANELS = {"spread": ("spread cls",), "losses": ("l_r", "validation l_r")}


def test_numbers_go_to_tensorboard_and_history(tmp_path):
    history = {}
    log = RunLog(tmp_path, 0, PANELS)
    log.scalars(3, {"spread cls": 0.5}, history)
    log.scalars(5, {"spread cls": 0.25}, history)
    log.line("hello")
    log.progress(history)
    log.close()
    assert history == {"spread cls": [[3, 0.5], [5, 0.25]]}
    board = EventAccumulator(str(tmp_path)).Reload()
    assert [(e.step, e.value) for e in board.Scalars("spread/cls")] == [(3, 0.5), (5, 0.25)]
    assert (tmp_path / "training_log.txt").read_text().endswith(": hello\n") and (
        tmp_path / "progress.png"
    ).stat().st_size > 5000


def test_weights_and_biases_where_it_is_asked_for_and_missing(tmp_path, monkeypatch):
    monkeypatch.setattr("nnunetv2.training.logging.nnunet_logger.wandb", None)
    assert RunLog(tmp_path, 0, PANELS).others == []
    monkeypatch.setenv("nnUNet_wandb_enabled", "1")
    with pytest.raises(UserError, match="nnUNet_wandb_enabled=1: W&B is not installed"):
        RunLog(tmp_path, 0, PANELS)
    monkeypatch.setenv("nnUNet_wandb_enabled", "maybe")
    with pytest.raises(UserError, match="nnUNet_wandb_enabled=maybe"):
        RunLog(tmp_path, 0, PANELS)


def test_time_left_is_in_hours():
    assert time_left(3725.2) == "1:02:05"
