"""What --c makes of a saved run and of what the user asks for."""

from pathlib import Path

import pytest
import torch

from alice_nnunet.checkpoint import save_checkpoint
from alice_nnunet.errors import UserError
from alice_nnunet.pretrain.runtime import device as device_module
from alice_nnunet.pretrain.training.config import PretrainConfig, make_config, read_settings
from alice_nnunet.pretrain.training.job import with_precision
from alice_nnunet.pretrain.training.resume import resumed_config
from tests.helpers.pretraining import CPU, SMALL, small_config

DATA: dict = {"number_of_cases": 1}


def resume(folder: Path, saved: PretrainConfig, *given: str) -> PretrainConfig:
    """The config of a saved run that the user resumes with some settings."""
    path = folder / "checkpoint_latest.pth"
    save_checkpoint(path, {"config": saved.as_dict(), "data": DATA, "step": 2})
    settings = read_settings("vit", "tiny", ["matcher=body", *SMALL, *given])
    requested = make_config("Dataset001_X", settings)
    given_names = {word.split("=")[0]: word.split("=")[1] for word in given}
    return resumed_config(path, requested, given_names, DATA, folder / "none", 1)


@pytest.mark.parametrize("saved", ["fp32", "bf16", "auto"])
@pytest.mark.parametrize("given", [(), ("precision=auto",)])
def test_a_run_goes_on_in_its_precision(saved, given, tmp_path):
    config = small_config("matcher=body", f"precision={saved}")
    assert resume(tmp_path, config, *given).precision == saved


def test_another_precision_is_refused(tmp_path):
    config = small_config("matcher=body", "precision=bf16")
    with pytest.raises(UserError, match="precision is 'fp32' on the command line but 'bf16'"):
        resume(tmp_path, config, "precision=fp32")


@pytest.mark.parametrize(
    "encoder, precision", [("vit", "bf16"), ("nnformer", "bf16"), ("swin", "fp32")]
)
def test_on_a_cpu_that_has_bf16_a_new_run_takes_it_where_it_pays(encoder, precision, monkeypatch):
    config = make_config("Dataset001_X", read_settings(encoder, "tiny"))
    monkeypatch.setattr(device_module, "cpu_has_bf16", lambda: True)
    assert with_precision(config, CPU).precision == precision

    monkeypatch.setattr(device_module, "cpu_has_bf16", lambda: False)
    assert with_precision(config, CPU).precision == "fp32"
    assert with_precision(config, torch.device("cpu")).as_dict()["precision"] == "fp32"
