"""alice-preprocess: preprocess the unlabeled volumes of a dataset in nnUNet_raw."""

import math

from alice_nnunet.checks.options import add_decision_options, given_decisions
from alice_nnunet.errors import CommandParser, UserError, command
from alice_nnunet.model.presets import CROPS
from alice_nnunet.settings.options import add_processes_option


def parser() -> CommandParser:
    parser = CommandParser(
        "alice-preprocess",
        description="Preprocess a dataset without labels: imagesTr, and a "
        "dataset.json with channel_names and file_ending.",
    )
    parser.add_argument(
        "-d", metavar="DATASET", required=True, help="ID or DatasetXXX_NAME in nnUNet_raw"
    )
    add_processes_option(parser, "that preprocess")
    parser.add_argument(
        "--overwrite", action="store_true", help="remove earlier results and repeat every case"
    )
    parser.add_argument(
        "--verify",
        action="store_true",
        help="read all finished cases and repeat the damaged ones",
    )
    parser.add_argument(
        "--with-test-images",
        action="store_true",
        help="use imagesTs too (default: imagesTr alone, as an encoder that has seen a test set "
        "makes results on it worthless)",
    )
    parser.add_argument(
        "-preset",
        choices=sorted(CROPS),
        help="preset that alice-embed and alice-pretrain will use, which decides spacing and crops "
        "(default: that of existing plans, else paper)",
    )
    parser.add_argument(
        "-spacing",
        type=float,
        nargs=3,
        metavar=("Z", "Y", "X"),
        help="voxel spacing in mm, in place of the preset's",
    )
    parser.add_argument(
        "-patch",
        type=int,
        nargs=3,
        metavar=("Z", "Y", "X"),
        help="size of the crops in voxels, in place of the preset's",
    )
    add_decision_options(parser)
    return parser


@command("alice-preprocess")
def main(argv: list[str] | None = None) -> None:
    arguments = parser().parse_args(argv)
    check_arguments(arguments)

    from alice_nnunet.pretrain.datasets.preprocessing import preprocess_dataset

    preprocess_dataset(
        arguments.d,
        arguments.np,
        arguments.overwrite,
        arguments.verify,
        spacing=tuple(arguments.spacing) if arguments.spacing else None,
        patch_size=tuple(arguments.patch) if arguments.patch else None,
        preset=arguments.preset,
        test_images=arguments.with_test_images,
        decisions=given_decisions(arguments),
    )


def check_arguments(arguments) -> None:
    """Raise UserError for numbers out of range."""
    if arguments.spacing and not all(math.isfinite(s) and s > 0 for s in arguments.spacing):
        raise UserError(f"-spacing must be three positive numbers in mm, got {arguments.spacing}")

    if arguments.patch and min(arguments.patch) < 1:
        raise UserError(f"-patch must be three positive numbers of voxels, got {arguments.patch}")
