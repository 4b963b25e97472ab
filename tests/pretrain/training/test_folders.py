"""Which folder a run has, and who may work in it."""

import os
from pathlib import Path

import pytest

from alice_nnunet.errors import UserError
from alice_nnunet.files import locked
from alice_nnunet.names import FINAL, LATEST
from alice_nnunet.pretrain.training.folders import describe_runs, own_folder, planned_folder


def write_run(folder: Path, *names: str, age: float = 0) -> None:
    """A run's folder with these files, last changed so many seconds ago."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_text("x")
        now = folder.stat().st_mtime
        os.utime(folder / name, (now - age, now - age))


def folder_of(results: Path, name: str | None = None, resume: bool = False) -> str:
    """The folder that a run gets, by its name."""
    planned = planned_folder(results, "vit", name, resume)
    with own_folder(results, "vit", name, resume) as run:
        assert run == planned
        return run.path.name


def test_a_new_run_never_takes_the_folder_of_another(tmp_path):
    assert folder_of(tmp_path) == "vit"
    write_run(tmp_path / "vit", "config.json", FINAL)
    assert folder_of(tmp_path) == "vit_1"
    write_run(tmp_path / "vit_1", "config.json", LATEST)
    assert folder_of(tmp_path) == "vit_2"
    assert folder_of(tmp_path, "long") == "vit_long"

    write_run(tmp_path / "vit_long", LATEST)
    with pytest.raises(UserError, match="a run named long exists"):
        folder_of(tmp_path, "long")
    assert describe_runs(tmp_path) == "vit (finished), vit_1 (unfinished), vit_long (unfinished)"
    with locked(tmp_path / "vit_1" / "lock"):
        assert describe_runs(tmp_path, but=tmp_path / "vit") == (
            "vit_1 (in training), vit_long (unfinished)"
        )


def test_an_empty_folder_is_not_left_behind(tmp_path):
    with own_folder(tmp_path, "vit", None, False) as run:
        assert run.path.is_dir()
    assert not list(tmp_path.iterdir())


def test_resuming_takes_the_newest_unfinished_run_or_the_named_one(tmp_path):
    write_run(tmp_path / "vit", LATEST, age=30)
    write_run(tmp_path / "vit_1", LATEST, age=20)
    write_run(tmp_path / "vit_short", LATEST, age=40)
    write_run(tmp_path / "vit_2", FINAL, age=10)
    write_run(tmp_path / "swin", LATEST)

    assert folder_of(tmp_path, resume=True) == "vit_1"
    assert folder_of(tmp_path, "short", resume=True) == "vit_short"

    for name in ("vit", "vit_1", "vit_short"):
        write_run(tmp_path / name, FINAL, age=25)
    assert folder_of(tmp_path, resume=True) == "vit_2"  # all have ended: the newest


def test_resuming_goes_on_with_a_run_that_was_killed_before_its_first_checkpoint(tmp_path):
    write_run(tmp_path / "vit", FINAL, age=30)
    write_run(tmp_path / "vit_1", "config.json", age=20)
    with own_folder(tmp_path, "vit", None, True) as run:
        assert run.path.name == "vit_1" and run.checkpoint is None


def test_runs_of_earlier_versions_are_found(tmp_path):
    """There ENCODER was the newest, and had both checkpoints at its end."""
    write_run(tmp_path / "vit", LATEST, FINAL, "config.json", age=10)
    write_run(tmp_path / "vit_1", LATEST, "config.json", age=20)
    assert folder_of(tmp_path, resume=True) == "vit_1"
    assert folder_of(tmp_path) == "vit_2"


def test_no_two_processes_work_in_one_folder(tmp_path):
    with (
        own_folder(tmp_path, "vit", None, False) as first,
        own_folder(tmp_path, "vit", None, False) as second,
    ):
        assert (first.path.name, second.path.name) == ("vit", "vit_1")

    with locked_run(tmp_path / "vit_long"):
        for resume in (False, True):
            with (
                pytest.raises(UserError, match=f"process {os.getpid()} on "),
                own_folder(tmp_path, "vit", "long", resume),
            ):
                raise AssertionError("the block does not run")


def locked_run(folder: Path):
    write_run(folder, "config.json")
    return locked(folder / "lock")
