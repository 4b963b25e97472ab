import subprocess

import pytest

from alice_nnunet.commands.env import main
from alice_nnunet.trainers import __path__ as trainers


def evaluated(capsys) -> str:
    """nnUNet_extTrainer in a shell that evaluated what the command printed."""
    main([])
    script = f'{capsys.readouterr().out}\nprintf %s "$nnUNet_extTrainer"'
    return subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize(
    "before, after",
    [
        (None, trainers[0]),
        ("", trainers[0]),
        ("/one/with space:/two'$(false)`\"", f"/one/with space:/two'$(false)`\":{trainers[0]}"),
        (f"{trainers[0]}/:/two", f"{trainers[0]}/:/two"),
    ],
)
def test_the_trainers_folder_is_appended_once(before, after, monkeypatch, capsys):
    monkeypatch.delenv("nnUNet_extTrainer", raising=False)
    if before is not None:
        monkeypatch.setenv("nnUNet_extTrainer", before)

    assert evaluated(capsys) == after


def test_wrong_use_is_one_line(capsys):
    with pytest.raises(SystemExit) as end:
        main(["--nonsense"])

    assert end.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
