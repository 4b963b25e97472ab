"""alice-env: print the line with which nnU-Net's own commands find the trainers of this package."""

import shlex

from alice_nnunet.environment import with_own_trainers
from alice_nnunet.errors import CommandParser, command


@command("alice-env")
def main(argv: list[str] | None = None) -> None:
    parser = CommandParser(
        "alice-env", description='Let nnU-Net\'s commands find AliceTrainer: eval "$(alice-env)"'
    )
    parser.parse_args(argv)

    print(f"export nnUNet_extTrainer={shlex.quote(with_own_trainers())}")
