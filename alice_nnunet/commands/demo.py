"""alice-demo: from unlabeled scans to a segmentation of a new person, on a CPU."""

import os
from pathlib import Path

from alice_nnunet.errors import CommandParser, UserError, command
from alice_nnunet.files import at_work, held, locked, require_space
from alice_nnunet.model.presets import PRESETS
from alice_nnunet.names import LOCK

NEEDED = 500_000_000  # bytes; nnformer has left 203 MB, vit's checkpoints are three times as large


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
        "-encoder", default="nnformer", choices=sorted(PRESETS), help="encoder (default: nnformer)"
    )
    arguments = parser.parse_args(argv)

    out = arguments.o.resolve()
    check_output(out)

    from alice_nnunet.demo.pipeline import Budget, Demo

    out.mkdir(parents=True, exist_ok=True)
    with locked(out / LOCK):
        Demo(out, arguments.encoder, Budget(pretraining_steps=200, epochs=10, iterations=20)).run()


def check_output(out: Path) -> None:
    """Raise UserError where the demo cannot have this folder for its results."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        process = at_work(out / LOCK)
        if process:
            raise held(out / LOCK, process)
        raise UserError(
            f"{out} exists already and is not an empty folder: "
            f"choose another one with -o, or remove it"
        )

    for folder in out.parents:
        if folder.exists():
            if not os.access(folder, os.W_OK | os.X_OK):
                raise UserError(f"cannot write to {folder}: choose another folder with -o")
            break
    require_space(out, NEEDED, "the results of the demo")
