"""alice-embed: train the matcher of a dataset, and index every volume with it."""

from pathlib import Path

from alice_nnunet.errors import CommandParser, command
from alice_nnunet.model.presets import CROPS
from alice_nnunet.pretrain.embedding.config import embed_config
from alice_nnunet.settings.options import add_processes_option, add_set_option


def parser() -> CommandParser:
    parser = CommandParser(
        "alice-embed",
        description="Train the matcher of a dataset, without labels, and index every volume with "
        "it. alice-pretrain uses the index to find the same body part in two people.",
    )

    parser.add_argument(
        "-d",
        required=True,
        metavar="ID",
        help="dataset ID or name; preprocessed first where that is not done",
    )
    parser.add_argument(
        "-preset",
        default="paper",
        choices=sorted(CROPS),
        help="size of network and training (default: paper)",
    )

    parser.add_argument(
        "-device", choices=("cuda", "cpu"), help="default: cuda if available, otherwise cpu"
    )

    parser.add_argument(
        "-config",
        type=Path,
        metavar="FILE",
        help="JSON file of settings, such as the config.json of another training",
    )
    add_set_option(
        parser, "change settings, e.g. --set iterations=2000 batch_size=4; may be repeated"
    )
    add_processes_option(parser, "that preprocess and load")

    parser.add_argument(
        "-released",
        type=Path,
        metavar="FILE",
        help="use the weights released by SAM's authors instead of training (preset paper)",
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="remove an earlier training and its index, and repeat both",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print the plan of the training with its memory and time, and exit",
    )
    parser.add_argument(
        "--show",
        nargs=2,
        metavar=("A", "B"),
        help="draw matches between two cases of the finished index, and exit",
    )

    return parser


@command("alice-embed")
def main(argv: list[str] | None = None) -> None:
    arguments = parser().parse_args(argv)
    config = embed_config(arguments.d, arguments.preset, arguments.assignments, arguments.config)

    from alice_nnunet.pretrain.embedding import job
    from alice_nnunet.pretrain.runtime.stop import exit_code

    if arguments.show:
        job.show(arguments.d, *arguments.show)
        return
    if arguments.dry_run:
        job.dry_run(config, arguments.device, arguments.overwrite)
        return

    stopped_by = job.embed(
        config, arguments.device, arguments.np, arguments.released, arguments.overwrite
    )
    if stopped_by:
        raise SystemExit(exit_code(stopped_by))
