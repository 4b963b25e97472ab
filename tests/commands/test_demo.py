import pytest

from alice_nnunet.commands.demo import main


def test_a_folder_with_something_in_it_is_refused(tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("x")

    with pytest.raises(SystemExit) as left:
        main(["-o", str(tmp_path)])

    assert left.value.code == 2 and "choose another one" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
