"""A loss that is not finite ends a fine-tuning with the names of its cases."""

import numpy as np
import pytest
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from alice_nnunet.errors import UserError
from alice_nnunet.finetuning.finite_loss import check_loss
from alice_nnunet.trainers.alice_trainer import AliceTrainer

CASES = ["b", "a", "b"]


@pytest.mark.parametrize("loss", [np.nan, np.inf, np.array(np.nan, np.float32)])
def test_the_cases_and_the_checkpoint_are_named(tmp_path, loss):
    with pytest.raises(UserError, match=r"cases of its batch are a, b, .*othing was saved yet"):
        check_loss(loss, CASES, "training step in epoch 3", tmp_path, tmp_path / "cases")

    (tmp_path / "checkpoint_latest.pth").touch()
    with pytest.raises(UserError, match=r"checkpoint_latest.pth is from before and is kept"):
        check_loss(loss, CASES, "training step in epoch 3", tmp_path, tmp_path / "cases")


def test_a_finite_loss_goes_on(tmp_path):
    check_loss(np.array(-0.7), CASES, "training step in epoch 0", tmp_path, tmp_path)


@pytest.mark.parametrize("step", ["train_step", "validation_step"])
def test_the_trainer_ends_in_one_line(tmp_path, monkeypatch, capsys, step):
    trainer = AliceTrainer.__new__(AliceTrainer)
    trainer.current_epoch = 3
    trainer.output_folder = trainer.preprocessed_dataset_folder = str(tmp_path)
    batch = {"keys": np.array(CASES)}

    monkeypatch.setattr(nnUNetTrainer, step, lambda self, batch: {"loss": np.array(0.5)})
    assert getattr(trainer, step)(batch) == {"loss": 0.5}

    monkeypatch.setattr(nnUNetTrainer, step, lambda self, batch: {"loss": np.array(np.nan)})
    with pytest.raises(SystemExit) as end:
        getattr(trainer, step)(batch)
    error = capsys.readouterr().err
    assert end.value.code == 2 and error.count("\n") == 1
    assert "in epoch 3 is nan" in error and "a, b" in error
