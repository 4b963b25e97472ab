"""What a user may name as pretrained weights: a checkpoint, a folder of alice-export, a repository on the Hugging Face hub."""

import os
import re

from huggingface_hub import constants, snapshot_download

from alice_nnunet.errors import UserError
from alice_nnunet.sharing.exported import CONFIG, MODEL, PLAN, model_sha256
from alice_nnunet.files import file_sha256

REPOSITORY = re.compile(
    r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@([\w./-]+))?"
)  # owner/name, owner/name@revision
FILES = (".pth", ".pt", ".safetensors")  # a name that ends so is a file's, whatever is before


def find_weights(given: str) -> str:
    """Absolute path of the checkpoint or exported folder that given names.

    What exists here comes first. owner/name, or owner/name@revision, is else looked for on the Hugging Face hub, and in
    its cache where there is no network. Raises UserError where it is in neither.
    """
    path = os.path.abspath(given)
    repository = REPOSITORY.fullmatch(given)
    if os.path.exists(path) or not repository or given.endswith(FILES):
        return path  # load_pretraining says what is wrong with it
    return download(*repository.groups())


def download(repository: str, revision: str | None) -> str:
    """Folder in the hub's cache with the exported files of a repository. revision: branch, tag or commit, else the main branch."""
    try:
        return snapshot_download(
            repository, revision=revision, allow_patterns=[MODEL, CONFIG, PLAN]
        )
    except (
        Exception
    ) as error:  # the hub's client has errors of many families: of HTTP, of its cache, of names
        reason = str(error).strip().splitlines()[0]
        name = f"{repository}@{revision}" if revision else repository
        raise UserError(
            f"{name} is no file or folder here, and cannot be had as a Hugging Face repository ({reason}). Its cache on "
            f"this machine is {constants.HF_HUB_CACHE}. Check the spelling and the network; without one, download the "
            f"repository elsewhere (hf download {repository}) and name the folder"
        ) from error


def weights_sha256(path: str) -> str:
    """SHA-256 of a checkpoint, or of the tensors in an exported folder."""
    return model_sha256(path) if os.path.isdir(path) else file_sha256(path)
