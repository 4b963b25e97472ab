"""alice-env: the lines a shell evaluates so that nnU-Net's own commands find the trainers of this package."""

import os
import shlex
from importlib.util import find_spec

from alice_nnunet.errors import CommandParser, command


@command("alice-env")
def main(argv: list[str] | None = None) -> None:
    parser = CommandParser(
        "alice-env", description='Let nnU-Net\'s commands find AliceTrainer: eval "$(alice-env)"'
    )
    parser.parse_args(argv)
    folders = with_trainers(os.environ.get("nnUNet_extTrainer", ""))
    print(f"export nnUNet_extTrainer={shlex.quote(folders)}")


def with_trainers(folders: str) -> str:
    """Folders as in nnUNet_extTrainer, with the one of alice_nnunet.trainers behind them if it is not among them."""
    ours = find_spec("alice_nnunet.trainers").submodule_search_locations[0]
    known = [folder for folder in folders.split(os.pathsep) if folder]
    if not any(os.path.realpath(folder) == os.path.realpath(ours) for folder in known):
        known.append(ours)
    return os.pathsep.join(known)
