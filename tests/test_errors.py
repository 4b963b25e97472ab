import errno
import os

import pytest

from alice_nnunet.errors import CommandParser, UserError, command


def run(body, argv=None):
    with pytest.raises(SystemExit) as left:
        command("alice-x")(body)(argv)
    return left.value.code


def test_a_user_error_is_one_line_and_code_2(capsys):
    def body(argv):
        raise UserError("what to do")

    assert run(body) == 2
    assert capsys.readouterr().err == "alice-x: what to do\n"


def test_wrong_arguments_are_one_line_and_code_2(capsys):
    def body(argv):
        CommandParser("alice-x").parse_args(argv)

    assert run(body, ["--nonsense"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_interrupting_is_130(capsys):
    def body(argv):
        raise KeyboardInterrupt

    assert run(body) == 130 and "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_one_line_and_code_2(capsys, number):
    def body(argv):
        raise OSError(number, os.strerror(number), "/disk/file")

    assert run(body) == 2
    error = capsys.readouterr().err
    assert error.startswith("alice-x: no space is left on the disk for /disk/file (")
    assert "free some space" in error and error.count("\n") == 1


def test_our_own_mistakes_keep_their_traceback():
    def body(argv):
        raise KeyError("x")

    with pytest.raises(KeyError):
        command("alice-x")(body)(None)
