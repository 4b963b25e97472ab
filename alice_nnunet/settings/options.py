"""Options that several commands have, in one form. Imports nothing that takes time."""

import os
from argparse import ArgumentParser, ArgumentTypeError

NNUNET_PROCESSES = "nnUNet_def_n_proc"  # nnU-Net's variable for the same number


def add_set_option(parser: ArgumentParser, help: str) -> None:
    """Add the option `--set NAME=VALUE ...`, which may be repeated, as `arguments.assignments`."""
    parser.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME=VALUE",
        dest="assignments",
        help=help,
    )


def add_processes_option(parser: ArgumentParser, purpose: str) -> None:
    """Add the option `-np N`. purpose: what the processes do, such as "that preprocess"."""
    parser.add_argument(
        "-np",
        type=positive_int,
        default=default_processes(),
        metavar="N",
        help=f"number of processes {purpose} (default: %(default)s)",
    )


def add_device_option(parser: ArgumentParser) -> None:
    """Add the option `-device`."""
    parser.add_argument(
        "-device", choices=("cuda", "cpu"), help="default: cuda if available, otherwise cpu"
    )


def default_processes() -> int:
    """nnUNet_def_n_proc if it is set, as in nnU-Net's own commands.

    Else the cores that this process may use, at most 8: each process holds volumes of several GB.
    """
    given = os.environ.get(NNUNET_PROCESSES, "")
    if given.isdecimal() and int(given) > 0:
        return int(given)

    return min(8, usable_cores())


def usable_cores() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def positive_int(text: str) -> int:
    """An argument's type for argparse: a whole number above 0."""
    if not text.isdecimal() or int(text) == 0:
        raise ArgumentTypeError(f"must be at least 1, got {text}")
    return int(text)
