"""alice-submit: write a trained model as a folder that segments by itself, as for FLARE."""

from pathlib import Path

from alice_nnunet.errors import CommandParser, UserError, command
from alice_nnunet.names import FINAL


def parser() -> CommandParser:
    parser = CommandParser(
        "alice-submit",
        description="Write a folder that segments by itself: weights, plans, code, predict.sh, a "
        "Dockerfile and a script that checks the outputs.",
    )
    parser.add_argument(
        "model",
        metavar="MODEL_FOLDER",
        type=Path,
        help="nnU-Net's results folder of one configuration, "
        "such as .../AliceTrainer__AlicePlans__3d_fullres",
    )
    parser.add_argument("out", metavar="OUT", type=Path, help="new folder")
    parser.add_argument(
        "-f",
        nargs="+",
        metavar="FOLD",
        help="folds to predict with, 0 to 4 or all (default: those of 0 to 4 that are trained)",
    )
    parser.add_argument(
        "-chk", default=FINAL, metavar="NAME", help="checkpoint of each fold (default: %(default)s)"
    )
    parser.add_argument(
        "-step_size",
        type=float,
        default=0.5,
        metavar="X",
        help="step of the sliding window, as a share of the patch size (default: %(default)s)",
    )
    parser.add_argument(
        "--disable_tta",
        action="store_true",
        help="predict without mirroring: up to eight times faster",
    )
    parser.add_argument(
        "--disable_postprocessing",
        action="store_true",
        help="leave out the postprocessing that nnUNetv2_find_best_configuration found to help",
    )
    return parser


@command("alice-submit")
def main(argv: list[str] | None) -> None:
    arguments = parser().parse_args(argv)
    if not 0 < arguments.step_size <= 1:
        raise UserError(f"-step_size must be above 0 and at most 1, got {arguments.step_size}")

    from alice_nnunet.submission.folder import write_submission

    write_submission(
        arguments.model,
        arguments.out.resolve(),
        folds=arguments.f,
        checkpoint=arguments.chk,
        step_size=arguments.step_size,
        mirroring=not arguments.disable_tta,
        postprocessing=not arguments.disable_postprocessing,
    )
