import hashlib
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time

import pytest

from alice_nnunet import files
from alice_nnunet.errors import UserError
from alice_nnunet.files import (
    at_work,
    file_sha256,
    holder,
    locked,
    locked_in_turn,
    new_folder,
    replacing,
    require_space,
    write_json_atomically,
)


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


def test_leftover_of_a_kill_is_overwritten(tmp_path):
    path = tmp_path / "file"
    with replacing(path) as partial:
        partial.write_text("x")

    partial.write_text("half a file from a killed process")
    with replacing(path) as partial:
        partial.write_text("new")

    assert path.read_text() == "new" and not partial.exists()


HOLD = """
import sys, time
from pathlib import Path
from alice_nnunet.files import locked

with locked(Path(sys.argv[1])):
    print('held', flush=True)
    time.sleep(600)
"""


def test_lock_keeps_a_second_process_out_until_the_first_ends(tmp_path):
    path = tmp_path / "lock"
    first = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True
    )
    assert first.stdout.readline() == "held\n"

    with pytest.raises(UserError) as refused, locked(path):
        pass
    message = rf"process {first.pid} on .+, since .+, is working in"
    assert re.match(message, str(refused.value))

    first.kill()
    first.wait()
    with locked(path):
        pass


def test_lock_is_free_after_the_block_and_after_an_error_in_it(tmp_path):
    with locked(tmp_path / "lock"):
        pass
    with pytest.raises(KeyError), locked(tmp_path / "lock"):
        raise KeyError
    with (
        locked(tmp_path / "lock"),
        pytest.raises(UserError, match=str(os.getpid())),
        locked(tmp_path / "lock"),
    ):
        pass


def test_a_second_process_waits_for_its_turn_and_says_for_whom(tmp_path, capsys):
    path = tmp_path / "lock"
    first = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True
    )
    assert first.stdout.readline() == "held\n"
    end = threading.Timer(1.0, first.kill)
    end.start()

    with locked_in_turn(path):
        assert first.wait() != 0
        assert str(os.getpid()) in path.read_text()

    said = capsys.readouterr().out
    assert said.count("waiting for") == 1 and f"process {first.pid} on" in said


ELSEWHERE = "process 7 on another-machine, since 2026-01-01 00:00:00"


def test_lock_left_by_a_killed_process_of_another_machine_is_taken(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(files, "SIGN_OF_LIFE", 0.05)
    (tmp_path / "lock").write_text(ELSEWHERE)
    with locked(tmp_path / "lock"):
        assert f"process {os.getpid()} on" in (tmp_path / "lock").read_text()
    assert f"names {ELSEWHERE}, which may have been killed" in capsys.readouterr().out


def test_lock_of_a_living_process_of_another_machine_is_respected(tmp_path, monkeypatch):
    """On a file system whose locks other machines do not see: the system gives this one away."""
    monkeypatch.setattr(files, "SIGN_OF_LIFE", 0.2)
    path = tmp_path / "lock"
    path.write_text(ELSEWHERE)

    ended = threading.Event()
    other = threading.Thread(target=files.give_signs, args=(path, ELSEWHERE, ended))
    other.start()
    try:
        with pytest.raises(UserError, match="on another-machine, since"), locked(path):
            pass
    finally:
        ended.set()
        other.join()
    assert path.read_text() == ELSEWHERE


def test_a_file_system_without_locks(tmp_path, monkeypatch):
    def no_locks(lock, timeout):
        raise NotImplementedError

    monkeypatch.setattr(files.FileLock, "acquire", no_locks)
    path = tmp_path / "lock"
    with locked(path), pytest.raises(UserError, match=str(os.getpid())), locked(path):
        pass

    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    path.write_text(f"process {ended.pid} on {socket.gethostname()}, since 2026-01-01 00:00:00")
    with locked(path):
        pass


def test_a_disk_without_room_is_an_error_before_the_work(tmp_path):
    require_space(tmp_path / "not" / "yet", 1, "a byte")
    with pytest.raises(UserError, match=r"two files take at least 1e\+15 GB.*GB free: free some"):
        require_space(tmp_path / "not" / "yet", 10**24, "two files")


def test_sha256_of_a_file(tmp_path):
    content = b"abc" * 1_000_000
    (tmp_path / "file").write_bytes(content)
    assert file_sha256(tmp_path / "file") == hashlib.sha256(content).hexdigest()


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "old").write_text("left by a kill")
    with pytest.raises(OSError, match="no space"), new_folder(tmp_path / "out") as folder:
        (folder / "half").write_text("x")
        raise OSError("no space left")
    assert not list(tmp_path.iterdir())

    with new_folder(tmp_path / "a" / "out") as folder:
        (folder / "inside").mkdir()
        (folder / "inside" / "file").write_text("x")
        assert not (tmp_path / "a" / "out").exists()
    assert [path.name for path in (tmp_path / "a").rglob("*")] == ["out", "inside", "file"]


def test_two_processes_do_not_fill_one_folder(tmp_path):
    with new_folder(tmp_path / "out") as folder:
        (folder / "file").write_text("x")
        with (
            pytest.raises(UserError, match=r"\(lock file: out\.lock\)"),
            new_folder(tmp_path / "out"),
        ):
            raise AssertionError("the block does not run")
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "file"]


def test_an_existing_folder_is_not_touched(tmp_path):
    with pytest.raises(UserError, match="exists already"), new_folder(tmp_path):
        raise AssertionError("the block does not run")


def test_who_is_at_work(tmp_path):
    lock = tmp_path / "lock"
    assert at_work(lock) == ""
    with locked(lock):
        assert at_work(lock) == holder(lock) != ""
    assert at_work(lock) == ""

    lock.write_text(f"process 999999999 on {socket.gethostname()}, since today")  # was killed
    assert at_work(lock) == ""
    lock.write_text("process 1 on another machine, since today")
    assert at_work(lock) == "process 1 on another machine, since today"
    silent = time.time() - 60
    os.utime(lock, (silent, silent))
    assert at_work(lock) == ""
