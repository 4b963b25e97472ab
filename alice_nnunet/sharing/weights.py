"""Find pretrained weights: a file, an exported folder or a Hugging Face repository."""

import os
import re
from pathlib import Path

from huggingface_hub import constants, snapshot_download

from alice_nnunet.checkpoint import finished_checkpoint, no_checkpoint
from alice_nnunet.errors import UserError
from alice_nnunet.files import file_sha256
from alice_nnunet.sharing.exported import CONFIG, MODEL, PLAN, model_sha256

# owner/name or owner/name@revision
REPOSITORY = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@([\w./-]+))?")
FILE_ENDINGS = (".pth", ".pt", ".safetensors")  # a name with one of these is never a repository


def find_weights(given: str) -> str:
    """Absolute path of a checkpoint or exported folder.

    Args:
        given: path of a file, an exported folder or a results folder of alice-pretrain, which
            stands for its final checkpoint; if nothing exists there, `owner/name` or
            `owner/name@revision` on the Hugging Face hub or in its cache.

    Raises:
        UserError: the repository is neither on the hub nor in the cache, or the pretraining has
            not ended.
    """
    path = os.path.abspath(given)  # noqa: PTH100 - resolve() would follow links
    repository = REPOSITORY.fullmatch(given)

    if is_of_runs(Path(path)):
        return str(finished_checkpoint(Path(path)))
    if Path(path).exists() or not repository or given.endswith(FILE_ENDINGS):
        return path  # it may be missing: whoever reads it reports that

    return download(*repository.groups())


def is_of_runs(folder: Path) -> bool:
    """Whether a folder holds a run of alice-pretrain, also an early one, or folders of such."""
    if not folder.is_dir() or (folder / MODEL).is_file():
        return False
    if (folder / CONFIG).is_file() and not (folder / PLAN).is_file():
        return True  # a run has written its settings, and no checkpoint yet
    return any(folder.glob("checkpoint_*.pth")) or any(folder.glob("*/checkpoint_*.pth"))


def download(repository: str, revision: str | None) -> str:
    """Download the exported files of a repository and return their folder in the hub's cache.

    Args:
        repository: owner/name.
        revision: branch, tag or commit; None for the main branch.
    """
    try:
        return snapshot_download(
            repository, revision=revision, allow_patterns=[MODEL, CONFIG, PLAN]
        )
    except Exception as error:
        # the hub's client raises errors of HTTP, of its cache and of names, without a common base
        reason = str(error).strip().splitlines()[0]
        name = f"{repository}@{revision}" if revision else repository
        raise UserError(
            f"{name} is not a file or folder here, and cannot be loaded as a Hugging Face "
            f"repository ({reason}). Its cache on this machine is {constants.HF_HUB_CACHE}. "
            f"Check the spelling and the network; without a network, download the repository "
            f"elsewhere (hf download {repository}) and give the folder"
        ) from error


def weights_sha256(path: str) -> str:
    """SHA-256 of a checkpoint, or of the tensors in an exported folder.

    Raises:
        UserError: there is no such file.
    """
    if Path(path).is_dir():
        return model_sha256(path)
    if not Path(path).is_file():
        raise no_checkpoint(path)
    return file_sha256(path)
