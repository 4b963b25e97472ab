"""Errors that users can correct end in one clear line and exit code 2, never in a traceback."""

import argparse
import errno
import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

# A full disk, a quota that is used up, a file larger than is allowed. Windows has no quota error.
NO_SPACE = tuple(
    getattr(errno, name) for name in ("ENOSPC", "EDQUOT", "EFBIG") if hasattr(errno, name)
)


class UserError(Exception):
    """Something the user can correct.

    The text says what was found, what was expected, in which file, and what to do.
    """


class CommandParser(argparse.ArgumentParser):
    """argparse's parser; on wrong use it prints one line instead of the whole usage."""

    def error(self, message: str) -> NoReturn:
        """Print the message; an option that is none of this command may be a setting."""
        takes_settings = "--set" in self._option_string_actions
        if takes_settings and message.startswith("unrecognized arguments: -"):
            message += "; settings are given as --set NAME=VALUE"
        self.exit(2, f"{self.prog}: {message} (see {self.prog} -h)\n")


@contextmanager
def exit_on_user_error(name: str) -> Iterator[None]:
    """Turn a UserError or a full disk inside the block into one line on stderr and exit code 2."""
    try:
        yield
    except UserError as error:
        print(f"{name}: {error}", file=sys.stderr, flush=True)
        raise SystemExit(2) from None
    except OSError as error:
        if error.errno not in NO_SPACE:
            raise
        where = f" for {error.filename}" if error.filename else ""
        print(
            f"{name}: no space is left on the disk{where} ({error.strerror}). What was finished is "
            "kept: free some space, then run the same command again",
            file=sys.stderr,
            flush=True,
        )
        raise SystemExit(2) from None


def command(name: str) -> Callable:
    """Decorate the entry point of a command: UserError exits with code 2, Ctrl-C with 130."""

    def decorate(main: Callable) -> Callable:
        @functools.wraps(main)
        def entry(argv: list[str] | None = None) -> None:
            try:
                with exit_on_user_error(name):
                    main(argv)
            except KeyboardInterrupt:
                print(f"{name}: interrupted", file=sys.stderr)
                raise SystemExit(130) from None

        return entry

    return decorate
