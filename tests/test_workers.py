import os

import pytest

from alice_nnunet import workers
from alice_nnunet.errors import UserError
from alice_nnunet.workers import run_each, with_progress


def test_one_process_is_this_one():
    assert dict(run_each(os.getpid, {"a": (), "b": ()}, 1)) == {"a": os.getpid(), "b": os.getpid()}
    assert dict(run_each(os.getpid, {}, 4)) == {}


def test_several_processes():
    results = dict(run_each(pow, {str(n): (n, 2) for n in range(8)}, 2))
    assert results == {str(n): n * n for n in range(8)}
    assert os.getpid() not in dict(run_each(os.getpid, {"a": (), "b": ()}, 2)).values()


def test_a_killed_process_is_a_clear_error():
    with pytest.raises(UserError, match=r"one of 2 processes was killed.*-np 1"):
        list(run_each(os._exit, {"a": (1,), "b": (1,)}, 2))


def test_progress_goes_into_a_file_as_lines(capsys, monkeypatch):
    def names() -> list[str]:
        results = (((f"case{n}", n), n) for n in range(5))
        assert [result for _, result in with_progress(results, "counting", 5)] == list(range(5))
        lines = capsys.readouterr().out.splitlines()
        return [line.removesuffix(" | left 0:00:00") for line in lines]

    assert names() == ["counting | 1 of 5 | 0", "counting | 5 of 5 | 4"]
    monkeypatch.setattr(workers, "SECONDS_BETWEEN_LINES", 0)
    assert len(names()) == 5
