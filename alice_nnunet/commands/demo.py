"""alice-demo: from unlabeled scans to a segmentation of a new person, on a CPU."""

from pathlib import Path

from alice_nnunet.errors import CommandParser, UserError, command
from alice_nnunet.model.presets import PRESETS


@command("alice-demo")
def main(argv: list[str] | None) -> None:
    parser = CommandParser(
        "alice-demo",
        description="Pretrain, fine-tune and predict on the CT volumes that ship with the package.",
    )
    parser.add_argument(
        "-o",
        type=Path,
        default=Path("alice-demo"),
        metavar="DIR",
        help="new folder for all results (default: alice-demo)",
    )
    parser.add_argument(
        "-encoder", default="vit", choices=sorted(PRESETS), help="encoder (default: vit)"
    )
    arguments = parser.parse_args(argv)

    out = arguments.o.resolve()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(
            f"{out} exists already and is not an empty folder: "
            f"choose another one with -o, or remove it"
        )

    from alice_nnunet.demo.pipeline import Demo

    out.mkdir(parents=True, exist_ok=True)
    Demo(out, arguments.encoder, pretraining_steps=200, epochs=12, iterations=25).run()
