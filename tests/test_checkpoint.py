"""Checkpoints on the disk."""

import resource
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import alice_nnunet
import alice_nnunet.pretrain
from alice_nnunet.checkpoint import load_checkpoint, load_pretraining, save_checkpoint
from alice_nnunet.errors import UserError


def test_what_is_saved_is_loaded(tmp_path):
    saved = {
        "network_weights": {"a": torch.rand(3)},
        "step": 2,
        "config": {"x": [1, None]},
        "data": {},
        "adaptation_plan": {},
    }
    save_checkpoint(tmp_path / "c.pth", saved)
    loaded = load_pretraining(tmp_path / "c.pth")
    assert (
        torch.equal(loaded.pop("network_weights")["a"], saved.pop("network_weights")["a"])
        and loaded == saved
    )
    assert [p.name for p in tmp_path.iterdir()] == ["c.pth"]


@contextmanager
def files_of_at_most(size: int):
    """A full disk, as far as one process can have it: no file gets longer than size bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("size", [0, 1000, 50_000])
def test_a_full_disk_is_an_error_that_names_the_file_and_leaves_the_old_one(tmp_path, size):
    save_checkpoint(tmp_path / "c.pth", {"step": 1})
    with (
        files_of_at_most(size),
        pytest.raises(UserError, match=f"{tmp_path}/c.pth could not be written .*File too large"),
    ):
        save_checkpoint(tmp_path / "c.pth", {"step": 2, "weights": torch.rand(100_000)})
    assert load_checkpoint(tmp_path / "c.pth") == {"step": 1} and len(list(tmp_path.iterdir())) == 1


def test_nothing_else_writes_with_torch():
    """torch hides a full disk behind errors of its own, which save_checkpoint understands."""
    package = Path(alice_nnunet.__file__).parent
    folders = (package, Path(alice_nnunet.pretrain.__file__).parent)
    files = {path for folder in folders for path in folder.rglob("*.py")}
    writing = {path.name for path in files if "torch.save(" in path.read_text(encoding="utf-8")}
    assert writing == {"checkpoint.py"}


def test_so_is_a_folder_that_cannot_be_written_to(tmp_path):
    with pytest.raises(UserError, match=r"none/c.pth could not be written .*No such file"):
        save_checkpoint(tmp_path / "none" / "c.pth", {"step": 2})


def test_other_files_are_refused_in_one_line(tmp_path):
    with pytest.raises(UserError, match="no checkpoint at"):
        load_checkpoint(tmp_path / "none.pth")
    (tmp_path / "text.pth").write_text("hello")
    with pytest.raises(UserError, match="not a readable checkpoint"):
        load_checkpoint(tmp_path / "text.pth")
    save_checkpoint(tmp_path / "cut.pth", {"a": torch.rand(1000)})
    (tmp_path / "cut.pth").write_bytes((tmp_path / "cut.pth").read_bytes()[:1000])
    with pytest.raises(UserError, match="not a readable checkpoint"):
        load_checkpoint(tmp_path / "cut.pth")
    torch.save({"code": pytest.raises}, tmp_path / "code.pth")
    with pytest.raises(UserError, match="tensors and plain values"):
        load_checkpoint(tmp_path / "code.pth")

    torch.save({"state_dict": {}}, tmp_path / "foreign.pth")
    with pytest.raises(UserError, match="lacks network_weights"):
        load_pretraining(tmp_path / "foreign.pth")

    save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match="give the folder of alice-export"):
        load_pretraining(tmp_path / "a.safetensors")
