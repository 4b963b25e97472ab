"""alice-features: features of scans by a pretrained encoder, as arrays, pictures and neighbours."""

from argparse import Namespace
from pathlib import Path

from alice_nnunet.checks.options import add_decision_options, given_decisions
from alice_nnunet.errors import CommandParser, UserError, command
from alice_nnunet.settings.options import add_device_option, positive_int


def parser() -> CommandParser:
    parser = CommandParser(
        "alice-features",
        description="Encode every scan of a folder with a pretrained encoder: one vector, and a "
        "map for each stage with its affine and spacing, so that it can be laid over the scan. "
        "Files that cannot be used are listed and left out.",
    )
    parser.add_argument("scans", type=Path, metavar="IN", help="folder of scans, or one scan")
    parser.add_argument("output", type=Path, metavar="OUT", help="folder of the features")
    parser.add_argument(
        "-weights",
        required=True,
        metavar="W",
        help="checkpoint of alice-pretrain, folder of alice-export or Hugging Face repository",
    )
    parser.add_argument(
        "-format",
        default="npz",
        choices=("npz", "safetensors"),
        help="of the files (default: npz)",
    )
    parser.add_argument(
        "-stages",
        default="all",
        choices=("all", "last", "none"),
        help="maps that are kept beside the vector; those of fine stages are large (default: all)",
    )
    parser.add_argument(
        "--pca",
        action="store_true",
        help="draw the last stage over each scan, its three principal components as colours",
    )
    parser.add_argument(
        "--nearest",
        type=positive_int,
        default=0,
        metavar="K",
        help="list the K most similar scans of each one in nearest.csv and nearest.html",
    )
    add_device_option(parser)
    add_decision_options(parser)
    return parser


@command("alice-features")
def main(argv: list[str] | None = None) -> None:
    arguments = parser().parse_args(argv)
    check_arguments(arguments)

    from alice_nnunet.features.extract import Request, extract_features

    extract_features(
        Request(
            weights=arguments.weights,
            scans=arguments.scans,
            output=arguments.output,
            file_format=arguments.format,
            stages=arguments.stages,
            pca=arguments.pca,
            nearest=arguments.nearest,
            device=arguments.device,
            decisions=given_decisions(arguments),
        )
    )


def check_arguments(arguments: Namespace) -> None:
    """Raise UserError for options that contradict each other."""
    if arguments.pca and arguments.stages == "none":
        raise UserError("--pca draws the map of the last stage: use -stages last or all")
    if arguments.output.exists() and not arguments.output.is_dir():
        raise UserError(f"{arguments.output} is no folder: choose another one")
    if arguments.scans.is_dir() and arguments.scans.resolve() == arguments.output.resolve():
        raise UserError("IN and OUT are the same folder: choose another one for the features")
