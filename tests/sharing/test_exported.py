"""Reading an exported folder: damaged, foreign and missing files are named in one line."""

import json

import pytest

from alice_nnunet.errors import UserError
from alice_nnunet.files import file_sha256
from alice_nnunet.sharing.exported import last_metrics, load_exported, model_sha256, write_exported
from tests.helpers.finetuning import pretraining_checkpoint


@pytest.fixture
def folder(tmp_path):
    write_exported(tmp_path, pretraining_checkpoint(), {"any": "plan"})
    return tmp_path


def refused(folder) -> str:
    with pytest.raises(UserError) as caught:
        load_exported(folder)
    return str(caught.value)


def change(folder, **values) -> None:
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps({k: v for k, v in {**content, **values}.items() if v is not None})
    )


def test_what_is_written_is_read(folder):
    assert load_exported(folder)["step"] == 7
    assert load_exported(str(folder))["adaptation_plan"] == {"any": "plan"}
    assert model_sha256(folder) == file_sha256(folder / "model.safetensors")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "adaptation_plan.json"])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    assert f"no {name} in {folder}" in refused(folder)


def test_damage_is_seen(folder):
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "model.safetensors").write_bytes(data)
    text = refused(folder)
    for said in ("model.safetensors is damaged", "download it again", "sha256"):
        assert said in text

    (folder / "model.safetensors").write_bytes(b"no tensors")
    change(folder, weights_sha256=file_sha256(folder / "model.safetensors"))
    assert "model.safetensors is not a safetensors file" in refused(folder)


def test_foreign_and_broken_descriptions(folder):
    change(folder, data=None)
    assert "lacks data" in refused(folder)
    change(folder, format=None)
    assert "config.json is not of alice-export" in refused(folder)
    (folder / "config.json").write_text('["vit"]')
    assert "config.json is not of alice-export" in refused(folder)
    (folder / "config.json").write_text("{")
    assert "config.json is not valid JSON" in refused(folder)


def test_metrics_are_the_last_values():
    assert last_metrics({"b": [[1, 0.5], [2, 0.25]], "a": [[1, 3.0]], "c": []}) == {
        "a": {"step": 1, "value": 3.0},
        "b": {"step": 2, "value": 0.25},
    }
