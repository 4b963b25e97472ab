"""alice-plan: write nnU-Net plans that show a pretrained encoder what it knows."""

import argparse
import re

from alice_nnunet.checks.options import add_decision_options, given_decisions
from alice_nnunet.errors import CommandParser, UserError, command
from alice_nnunet.finetuning.recipes import SETTINGS
from alice_nnunet.planning.request import CUDA_GB, PlanRequest
from alice_nnunet.settings.options import add_processes_option, add_set_option
from alice_nnunet.settings.reading import given_settings


def parser() -> CommandParser:
    parser = CommandParser(
        "alice-plan",
        description="Write nnU-Net plans for fine-tuning from pretrained weights. "
        "The last line printed is the name of the plans.",
    )
    parser.add_argument(
        "-d",
        required=True,
        metavar="ID",
        help="ID or DatasetXXX_NAME of a labeled dataset in nnUNet_raw",
    )
    parser.add_argument(
        "-weights",
        required=True,
        metavar="CKPT",
        help="checkpoint or results folder of alice-pretrain, folder of alice-export, or Hugging "
        "Face repository, owner/name or owner/name@revision",
    )
    parser.add_argument(
        "-n", default="AlicePlans", metavar="NAME", help="name of the plans (default: %(default)s)"
    )
    parser.add_argument(
        "-spacing",
        nargs="+",
        default=["pretrained"],
        metavar="S",
        help="pretrained (default), dataset for nnU-Net's choice, or three numbers in mm (z y x); "
        "for BTCV the paper has 2 0.76 0.76",
    )
    parser.add_argument(
        "-patch",
        type=int,
        nargs=3,
        metavar=("Z", "Y", "X"),
        help="patch size in voxels, multiples of the encoder's unit",
    )
    parser.add_argument("-batch", type=int, metavar="N", help="batch size")
    parser.add_argument(
        "-gpu_memory",
        type=float,
        metavar="GB",
        help="memory of the GPU in GB (10^9 bytes) that batch and patch must fit in "
        "(default: no limit)",
    )
    parser.add_argument(
        "-epochs", type=int, metavar="N", help="length of a training; the warm-up keeps its share"
    )
    parser.add_argument("-iterations", type=int, metavar="N", help="iterations of an epoch")
    parser.add_argument(
        "-lr",
        type=float,
        metavar="X",
        help="learning rate at the end of the warm-up (default: the recipe's)",
    )
    add_set_option(parser, f"other entries of the recipe: {', '.join(SETTINGS)}")
    add_processes_option(parser, "that check files and extract nnU-Net's fingerprint")
    add_decision_options(parser)
    return parser


@command("alice-plan")
def main(argv: list[str] | None) -> None:
    request = requested(parser().parse_args(argv))

    from alice_nnunet.planning.planner import write_plans

    write_plans(request)


def requested(arguments: argparse.Namespace) -> PlanRequest:
    """What the arguments ask for. Raises UserError for numbers and names that make no sense."""
    for name in ("epochs", "iterations", "batch"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise UserError(f"-{name} must be at least 1, got {value}")

    if arguments.lr is not None and not 0 < arguments.lr < 1:
        raise UserError(f"-lr must be between 0 and 1, got {arguments.lr}")

    if arguments.gpu_memory is not None and arguments.gpu_memory <= CUDA_GB:
        raise UserError(
            f"-gpu_memory must be more than {CUDA_GB:g} GB, which CUDA itself needs, got "
            f"{arguments.gpu_memory:g}"
        )

    if not re.fullmatch(r"(?!.*__)\w[\w.-]*", arguments.n):
        raise UserError(
            f"-n must be a file name of letters, digits, '_', '-' and '.', without '__', got "
            f"{arguments.n!r}"
        )

    return PlanRequest(
        dataset=arguments.d,
        weights=arguments.weights,
        name=arguments.n,
        spacing=parse_spacing(arguments.spacing),
        patch=arguments.patch,
        batch=arguments.batch,
        gpu_memory=arguments.gpu_memory,
        epochs=arguments.epochs,
        iterations=arguments.iterations,
        learning_rate=arguments.lr,
        settings=given_settings(None, arguments.assignments, SETTINGS, ()),
        processes=arguments.np,
        decisions=given_decisions(arguments),
    )


def parse_spacing(words: list[str]) -> str | list[float]:
    """pretrained, dataset, or three numbers in mm (z, y, x)."""
    if words in (["pretrained"], ["dataset"]):
        return words[0]

    try:
        spacing = [float(word) for word in words]
    except ValueError:
        spacing = []

    if len(spacing) != 3 or min(spacing) <= 0:
        raise UserError(
            f"-spacing must be pretrained, dataset, or three numbers in mm (z y x), got "
            f"{' '.join(words)}"
        )
    return spacing
