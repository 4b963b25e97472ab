"""alice-export: write the pretrained encoder as a folder to share."""

from pathlib import Path

from alice_nnunet.errors import CommandParser, command


def parser() -> CommandParser:
    parser = CommandParser(
        "alice-export",
        description="Write the encoder of a pretraining checkpoint as a folder to share: "
        "safetensors, description, model card, nnssl's adaptation plan, and the tensors with the "
        "names of MONAI or nnFormer. Fine-tune from it with alice-plan -weights FOLDER.",
    )
    parser.add_argument(
        "checkpoint",
        metavar="CKPT",
        type=Path,
        help="checkpoint or results folder of alice-pretrain",
    )
    parser.add_argument("out", metavar="OUT", type=Path, help="new folder")
    parser.add_argument(
        "-license",
        metavar="NAME",
        help="licence of the weights as the Hugging Face hub names it, such as cc-by-4.0",
    )
    return parser


@command("alice-export")
def main(argv: list[str] | None) -> None:
    arguments = parser().parse_args(argv)
    from alice_nnunet.sharing.export import export_encoder

    export_encoder(arguments.checkpoint, arguments.out.resolve(), arguments.license)
