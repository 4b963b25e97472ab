"""nnU-Net's environment variables. Imports nothing that takes time."""

import os
from importlib.util import find_spec
from pathlib import Path

from alice_nnunet.errors import UserError

EXTERNAL_TRAINERS = "nnUNet_extTrainer"  # folders in which nnU-Net looks for trainers of others


def nnunet_folder(variable: str) -> Path:
    """The folder that one of nnU-Net's variables names. Raises UserError if it is not set."""
    value = os.environ.get(variable)
    if not value:
        raise UserError(
            f"the environment variable {variable} is not set: "
            f"export {variable}=FOLDER (nnU-Net's documentation, setting_up_paths.md)"
        )
    return Path(value)


def external_trainers() -> list[str]:
    """The folders in nnUNet_extTrainer."""
    folders = os.environ.get(EXTERNAL_TRAINERS, "").split(os.pathsep)
    return [folder for folder in folders if folder]


def own_trainers() -> str:
    """The folder of alice_nnunet.trainers, wherever it is installed."""
    spec = find_spec("alice_nnunet.trainers")
    assert spec is not None
    assert spec.submodule_search_locations is not None  # it is a package
    return spec.submodule_search_locations[0]


def with_own_trainers() -> str:
    """A value for nnUNet_extTrainer: its folders, then that of alice_nnunet.trainers if missing."""
    folders = external_trainers()
    own = own_trainers()

    if not any(os.path.realpath(folder) == os.path.realpath(own) for folder in folders):
        folders.append(own)
    return os.pathsep.join(folders)
