"""alice-pretrain: pretrain an encoder on the unlabeled volumes of an nnU-Net dataset."""

import re
import sys
from argparse import ArgumentTypeError
from pathlib import Path

from alice_nnunet.errors import CommandParser, command
from alice_nnunet.model.presets import CROPS, PRESETS
from alice_nnunet.model.pretraining.registry import DEFAULT, METHODS
from alice_nnunet.pretrain.training.config import MATCHERS, read_settings
from alice_nnunet.settings.options import add_processes_option, add_set_option, positive_int


def parser() -> CommandParser:
    parser = CommandParser(
        "alice-pretrain",
        description="Pretrain an encoder on unlabeled volumes, by Alice or another method.",
    )

    parser.add_argument(
        "-d",
        required=True,
        metavar="ID",
        help="dataset ID or name; preprocessed first where that is not done",
    )
    parser.add_argument(
        "-encoder", default="nnformer", choices=sorted(PRESETS), help="default: nnformer"
    )
    parser.add_argument(
        "-method",
        default=DEFAULT,
        choices=sorted(METHODS),
        help="method of pretraining (default: alice; docs/explanation/methods.md describes all)",
    )
    parser.add_argument(
        "-preset",
        default="paper",
        choices=sorted(CROPS),
        help="size of encoder and run (default: paper)",
    )
    parser.add_argument(
        "-matcher",
        choices=MATCHERS,
        help="how to find the same body part in another person: embedding, trained by alice-embed "
        "(first, where that is not done); body, the position in the body's box; same, no other "
        "person but the same volume twice (default: embedding)",
    )

    parser.add_argument(
        "-device", choices=("cuda", "cpu"), help="default: cuda if available, otherwise cpu"
    )
    parser.add_argument(
        "-num_gpus",
        type=positive_int,
        default=1,
        metavar="N",
        help="GPUs of this machine that train together, each with batch_size pairs; processes "
        "with -device cpu (default: 1; several machines: docs/how-to/cluster.md)",
    )

    parser.add_argument(
        "-config",
        type=Path,
        metavar="FILE",
        help="JSON file of settings, such as the config.json of another run",
    )
    add_set_option(parser, "change settings, e.g. --set iterations=200 lr=1e-4; may be repeated")
    add_processes_option(parser, "that preprocess and load")

    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print the plan of the run with its memory and time, draw its first pair, and exit",
    )
    parser.add_argument(
        "--c",
        action="store_true",
        dest="resume",
        help="go on with the newest unfinished run of encoder and method, or the one that -n "
        "names, from its last checkpoint; start a new run if there is none",
    )
    parser.add_argument(
        "-n",
        type=run_name,
        metavar="NAME",
        help="name of the run, whose results are in ENCODER_NAME (default: none; results are in "
        "ENCODER, or where a run is there, ENCODER_1, ENCODER_2 ...)",
    )

    return parser


def run_name(text: str) -> str:
    """An argument's type for argparse: the name of a run, which is part of a folder's name."""
    if not re.fullmatch(r"\w[\w.-]*", text) or text.isdecimal():
        raise ArgumentTypeError(
            f"must be letters, digits, '_', '-' and '.', and not a number alone, got {text!r}"
        )
    return text


@command("alice-pretrain")
def main(argv: list[str] | None = None) -> None:
    arguments = parser().parse_args(argv)
    assignments = arguments.assignments
    if arguments.matcher:
        assignments = [*assignments, f"matcher={arguments.matcher}"]
    settings = read_settings(
        arguments.encoder, arguments.preset, assignments, arguments.config, arguments.method
    )

    from alice_nnunet.pretrain.training.job import Request, dry_run, run_request

    request = Request(
        dataset=arguments.d,
        settings=settings,
        device=arguments.device,
        num_gpus=arguments.num_gpus,
        processes=arguments.np,
        resume=arguments.resume,
        name=arguments.n,
    )
    if arguments.dry_run:
        dry_run(request)
        return

    code = run_request(request, sys.argv[1:] if argv is None else argv)
    if code:
        raise SystemExit(code)
