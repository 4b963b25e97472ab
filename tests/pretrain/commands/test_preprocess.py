import pytest

from alice_nnunet.pretrain.commands.preprocess import main


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["-d", "23"], "no dataset with the ID 23"),
        (["-d", "22", "-np", "0"], "-np: must be at least 1"),
        (["-d", "22", "-spacing", "1", "0", "1"], "-spacing must be three positive numbers"),
        (["-d", "22", "-patch", "1", "0", "1"], "-patch must be three positive numbers"),
        ([], "required: -d"),
        (["-d", "22", "-spacing", "1"], "expected 3 arguments"),
    ],
)
def test_wrong_use_is_one_line_and_exit_code_2(raw_dataset, real_ct, capsys, arguments, message):
    raw_dataset({"a": real_ct})

    with pytest.raises(SystemExit) as end:
        main(arguments)

    error = capsys.readouterr().err
    assert end.value.code == 2
    assert message in error and error.count("\n") == 1
