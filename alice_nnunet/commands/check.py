"""alice-check: check a dataset before it is used, or everything that is set up here."""

from argparse import Namespace

from alice_nnunet.checks.findings import NO_DECISIONS
from alice_nnunet.checks.options import add_decision_options, given_decisions
from alice_nnunet.errors import CommandParser, UserError, command
from alice_nnunet.settings.options import add_processes_option


def parser() -> CommandParser:
    parser = CommandParser(
        "alice-check",
        description="With -d: check all images and labels of a dataset in nnUNet_raw: headers, "
        "voxels, labels, channels, files that nothing would use. Writes alice_check.json and a "
        "page of thumbnails, alice_check.png, into its folder in nnUNet_preprocessed; changes "
        "nothing. Exits with code 2 if a file cannot be used as it is. "
        "Without -d: show nnU-Net's variables, versions, the GPU, all datasets with their "
        "volumes, indexes and runs, and what does not fit together. Reads and writes no image.",
    )
    parser.add_argument(
        "-d", metavar="DATASET", help="ID or DatasetXXX_NAME in nnUNet_raw (default: none)"
    )
    parser.add_argument(
        "--json", action="store_true", help="without -d: print JSON in place of text"
    )
    add_processes_option(parser, "that read the files")
    add_decision_options(parser)
    return parser


@command("alice-check")
def main(argv: list[str] | None = None) -> None:
    arguments = parser().parse_args(argv)
    check_arguments(arguments)

    if arguments.d is None:
        from alice_nnunet.doctor.examination import show_examination

        show_examination(arguments.json)
        return

    from alice_nnunet.datasets.check_all import check_all

    check_all(arguments.d, arguments.np, given_decisions(arguments))


def check_arguments(arguments: Namespace) -> None:
    """Raise UserError for options of the other use."""
    if arguments.d is None and given_decisions(arguments) != NO_DECISIONS:
        raise UserError("--take, --fill-nan and --accept are for the files of a dataset: add -d")
    if arguments.d is not None and arguments.json:
        raise UserError(
            "--json is for alice-check without -d; with -d, alice_check.json is written"
        )
