"""alice-check: check every file of a raw dataset before it is used."""

from alice_nnunet.checks.options import add_decision_options, given_decisions
from alice_nnunet.errors import CommandParser, command
from alice_nnunet.settings.options import add_processes_option


def parser() -> CommandParser:
    parser = CommandParser(
        "alice-check",
        description="Check all images and labels of a dataset in nnUNet_raw: headers, voxels, "
        "labels, channels, files that nothing would use. Writes alice_check.json and a page of "
        "thumbnails, alice_check.png, into its folder in nnUNet_preprocessed; changes nothing. "
        "Exits with code 2 if a file cannot be used as it is.",
    )
    parser.add_argument(
        "-d", metavar="DATASET", required=True, help="ID or DatasetXXX_NAME in nnUNet_raw"
    )
    add_processes_option(parser, "that read the files")
    add_decision_options(parser)
    return parser


@command("alice-check")
def main(argv: list[str] | None = None) -> None:
    arguments = parser().parse_args(argv)

    from alice_nnunet.datasets.check_all import check_all

    check_all(arguments.d, arguments.np, given_decisions(arguments))
