"""Options that several commands have."""

import pytest

from alice_nnunet.errors import CommandParser
from alice_nnunet.settings.options import add_processes_option, add_set_option


@pytest.mark.parametrize(
    "words",
    [
        ["--set", "iterations=5", "lr=1"],
        ["--set", "iterations=5", "--set", "lr=1"],
        ["--set=iterations=5", "--set=lr=1"],
    ],
)
def test_set_takes_several_words_and_may_be_repeated(words):
    parser = CommandParser("alice-x")
    add_set_option(parser, "change settings")

    assert parser.parse_args(words).assignments == ["iterations=5", "lr=1"]
    assert parser.parse_args([]).assignments == []


def test_processes_are_at_least_one(capsys):
    parser = CommandParser("alice-x")
    add_processes_option(parser, "that load")

    assert parser.parse_args(["-np", "3"]).np == 3
    assert 1 <= parser.parse_args([]).np <= 8
    for wrong in ("0", "-1", "many"):
        with pytest.raises(SystemExit) as end:
            parser.parse_args(["-np", wrong])
        error = capsys.readouterr().err
        assert end.value.code == 2 and error.startswith("alice-x: argument -np: must be at least 1")
