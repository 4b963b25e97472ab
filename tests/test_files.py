import hashlib
import json
import subprocess
import sys

import pytest

from alice_nnunet.errors import UserError
from alice_nnunet.files import file_sha256, locked, new_folder, replacing, write_json_atomically


def test_writes_and_replaces_json(tmp_path):
    path = tmp_path / "report.json"
    write_json_atomically(path, {"ok": ["a"], "failed": {"ä": "why"}})
    write_json_atomically(path, {"ok": ["a", "b"], "failed": {}})
    assert json.loads(path.read_text(encoding="utf-8")) == {"ok": ["a", "b"], "failed": {}}
    assert [file.name for file in tmp_path.iterdir()] == ["report.json"]


def test_failure_keeps_the_old_file_and_leaves_nothing(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(RuntimeError), replacing(path) as partial:
        partial.write_text("half")
        assert path.read_text() == "old"
        raise RuntimeError
    with pytest.raises(TypeError):
        write_json_atomically(path, {"not json": {1, 2}})
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_leftover_of_a_kill_is_written_over(tmp_path):
    path = tmp_path / "file"
    with replacing(path) as partial:
        partial.write_text("x")
    partial.write_text("half a file from a killed process")
    with replacing(path) as partial:
        partial.write_text("new")
    assert path.read_text() == "new" and not partial.exists()


def test_lock_keeps_a_second_process_out_until_the_first_ends(tmp_path):
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys, time; from pathlib import Path\n"
            "from alice_nnunet.files import locked\n"
            "with locked(Path(sys.argv[1])):\n    print('held', flush=True); time.sleep(60)",
            str(tmp_path / "lock"),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(UserError, match="another process"), locked(tmp_path / "lock"):
        pass
    holder.kill()
    holder.wait()
    with locked(tmp_path / "lock"):
        pass


def test_sha256_of_a_file(tmp_path):
    (tmp_path / "f").write_bytes(b"abc" * 1_000_000)
    assert file_sha256(tmp_path / "f") == hashlib.sha256(b"abc" * 1_000_000).hexdigest()


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "old").write_text("left by a kill")
    with pytest.raises(OSError), new_folder(tmp_path / "out") as folder:
        (folder / "half").write_text("x")
        raise OSError("no space left")
    assert not list(tmp_path.iterdir())
    with new_folder(tmp_path / "a" / "out") as folder:
        (folder / "inside").mkdir()
        (folder / "inside" / "file").write_text("x")
        assert not (tmp_path / "a" / "out").exists()
    assert [p.name for p in (tmp_path / "a").rglob("*")] == ["out", "inside", "file"]
    with pytest.raises(UserError, match="exists already"), new_folder(tmp_path / "a" / "out"):
        raise AssertionError("never comes here")
