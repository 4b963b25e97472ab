import os

import pytest

from alice_nnunet.commands.demo import main
from alice_nnunet.files import locked


def test_a_folder_with_something_in_it_is_refused(tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("x")

    with pytest.raises(SystemExit) as left:
        main(["-o", str(tmp_path)])

    assert left.value.code == 2 and "choose another one" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_folder_in_which_another_demo_runs_is_refused_by_its_process(tmp_path, capsys):
    with locked(tmp_path / "lock"), pytest.raises(SystemExit) as left:
        main(["-o", str(tmp_path)])

    error = capsys.readouterr().err
    assert left.value.code == 2 and f"process {os.getpid()} on " in error
    assert f", is working in {tmp_path}: wait" in error
