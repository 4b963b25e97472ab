import pytest

from alice_nnunet.commands.submit import main


@pytest.mark.parametrize("step", ["0", "1.5"])
def test_the_step_is_a_share_of_the_patch(tmp_path, capsys, step):
    with pytest.raises(SystemExit) as end:
        main([str(tmp_path), str(tmp_path / "out"), "-step_size", step])

    assert end.value.code == 2
    assert "-step_size must be above 0 and at most 1" in capsys.readouterr().err
