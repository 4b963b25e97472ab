"""Reading an exported folder: what is damaged, foreign or incomplete ends in one line that names the file."""

import json

import pytest
import torch
from safetensors.torch import save_file

from alice_nnunet.checkpoint import load_pretraining
from alice_nnunet.errors import UserError
from alice_nnunet.sharing.exported import last_metrics, model_sha256, write_exported
from alice_nnunet.files import file_sha256
from tests.helpers.finetuning import pretraining_checkpoint


@pytest.fixture
def folder(tmp_path):
    write_exported(tmp_path, pretraining_checkpoint(), {"any": "plan"})
    return tmp_path


def refused(folder) -> str:
    with pytest.raises(UserError) as caught:
        load_pretraining(folder)
    return str(caught.value)


def change(folder, **values) -> None:
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps({k: v for k, v in {**content, **values}.items() if v is not None})
    )


def test_what_is_written_is_read(folder):
    assert load_pretraining(folder)["step"] == 7 and load_pretraining(str(folder))[
        "nnssl_adaptation_plan"
    ] == {"any": "plan"}
    assert model_sha256(folder) == file_sha256(folder / "model.safetensors")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "adaptation_plan.json"])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    assert f"no {name} in {folder}" in refused(folder)


def test_damage_is_seen(folder):
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "model.safetensors").write_bytes(data)
    assert (
        "model.safetensors is damaged" in (text := refused(folder))
        and "download it again" in text
        and "sha256" in text
    )
    (folder / "model.safetensors").write_bytes(b"no tensors")
    change(folder, weights_sha256=file_sha256(folder / "model.safetensors"))
    assert "model.safetensors is no safetensors file" in refused(folder)


def test_foreign_and_broken_descriptions(folder):
    change(folder, data=None)
    assert "lacks data" in refused(folder)
    change(folder, format=None)
    assert "config.json is not of alice-export" in refused(folder)
    (folder / "config.json").write_text('["vit"]')
    assert "config.json is not of alice-export" in refused(folder)
    (folder / "config.json").write_text("{")
    assert "config.json is no valid JSON" in refused(folder)


def test_tensors_without_their_folder(tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors")
    assert "name the folder of alice-export" in refused(tmp_path / "a.safetensors")


def test_metrics_are_the_last_values():
    assert last_metrics({"b": [[1, 0.5], [2, 0.25]], "a": [[1, 3.0]], "c": []}) == {
        "a": {"step": 1, "value": 3.0},
        "b": {"step": 2, "value": 0.25},
    }
