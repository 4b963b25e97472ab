"""The options of commands that check images. Imports nothing that takes time."""

import argparse

from alice_nnunet.checks.findings import ACCEPTABLE, TAKEABLE, Decisions


def add_decision_options(parser: argparse.ArgumentParser) -> None:
    """Add --take, --fill-nan and --accept."""
    parser.add_argument(
        "--take",
        nargs="+",
        action="extend",
        default=[],
        choices=tuple(TAKEABLE),
        metavar="WHAT",
        help="where a header leaves a choice: "
        + "; ".join(f"{name}, {meaning}" for name, meaning in TAKEABLE.items()),
    )
    parser.add_argument(
        "--fill-nan",
        action="store_true",
        help="fill voxels that are not finite (NaN, infinite) with air",
    )
    parser.add_argument(
        "--accept",
        nargs="+",
        action="extend",
        default=[],
        choices=tuple(ACCEPTABLE),
        metavar="KIND",
        help="use files in spite of findings: "
        + "; ".join(f"{name}, {meaning}" for name, meaning in ACCEPTABLE.items()),
    )


def given_decisions(arguments: argparse.Namespace) -> Decisions:
    """What the options say."""
    return Decisions(frozenset(arguments.take), arguments.fill_nan, frozenset(arguments.accept))
