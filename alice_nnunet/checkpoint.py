"""Checkpoints: tensors and plain values only, written atomically."""

from pathlib import Path

import torch

from alice_nnunet.errors import UserError
from alice_nnunet.files import replacing
from alice_nnunet.names import FINAL, LATEST

PRETRAINING_ENTRIES = ("network_weights", "step", "config", "data", "adaptation_plan")
EARLIER_PLAN = "nnssl_adaptation_plan"  # what earlier versions called it


def save_checkpoint(path: Path, checkpoint: dict) -> None:
    """Write a checkpoint; whatever happens, path holds the old file or the complete new one.

    Raises:
        UserError: the disk is full or the folder is not writable.
    """
    try:
        with replacing(path) as temporary, temporary.open("wb") as file:
            torch.save(checkpoint, file)

    except (OSError, RuntimeError) as error:
        # torch raises RuntimeError for every failure while it writes; the cause is its context
        cause = error.__context__ if isinstance(error.__context__, OSError) else error
        reason = str(cause).splitlines()[0]
        there = "The previous file is intact. " if Path(path).is_file() else ""
        raise UserError(
            f"{path} could not be written ({reason}). {there}Free some space or make the folder "
            "writable, then run the same command again"
        ) from error


def load_checkpoint(path: str | Path, device: str | torch.device = "cpu") -> dict:
    """Read a checkpoint with weights_only=True.

    Raises:
        UserError: the file is missing or cannot be read.
    """
    if not Path(path).is_file():
        raise no_checkpoint(path)

    try:
        return torch.load(path, map_location=device, weights_only=True)
    except Exception as error:
        # torch passes on whatever its unpickler raises: KeyError, UnpicklingError, EOFError ...
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        raise UserError(
            f"{path} is not a readable checkpoint of tensors and plain values ({reason})"
        ) from error


def glance_at(path: Path) -> dict:
    """A checkpoint whose tensors stay on the disk: quick, for its plain values.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # as in load_checkpoint
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        raise UserError(f"{path} is not a readable checkpoint ({reason})") from error


def no_checkpoint(path: str | Path) -> UserError:
    """The error for a checkpoint that is not there; it names those in and beside its folder."""
    folder = Path(path).parent
    places = (folder.glob("checkpoint_*.pth"), folder.glob("*/checkpoint_*.pth"))
    beside = folder.parent.glob("*/checkpoint_*.pth")
    names = sorted({str(file) for files in (*places, beside) for file in files})

    if not names:
        return UserError(f"no checkpoint at {path}")
    return UserError(f"no checkpoint at {path}. There are: {', '.join(names)}")


def finished_checkpoint(folder: Path) -> Path:
    """The final checkpoint in a results folder of alice-pretrain.

    Raises:
        UserError: the run has not ended, or the folder is of no run.
    """
    if (folder / FINAL).is_file():
        return folder / FINAL

    if (folder / LATEST).is_file():
        raise UserError(
            f"the pretraining in {folder} has not ended: go on with it (alice-pretrain --c), or "
            f"give {folder / LATEST} to take it as it is"
        )
    raise no_checkpoint(folder / FINAL)


def unfinished(checkpoint: dict) -> str | None:
    """'step 24 of 80' for the checkpoint of a pretraining that has not ended, else None."""
    step = checkpoint["step"]
    steps = checkpoint["config"].get("iterations", step)
    return f"step {step} of {steps}" if step < steps else None


def load_pretraining(path: str | Path) -> dict:
    """Read a checkpoint of alice-pretrain on the CPU.

    Raises:
        UserError: the file is missing, cannot be read or is not from alice-pretrain.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        raise UserError(
            f"{path} contains tensors only; give the folder of alice-export that contains it"
        )

    checkpoint = load_checkpoint(path)
    if isinstance(checkpoint, dict) and EARLIER_PLAN in checkpoint:
        checkpoint["adaptation_plan"] = checkpoint.pop(EARLIER_PLAN)
    check_entries(checkpoint, path)
    return checkpoint


def check_entries(checkpoint: object, path: str | Path) -> None:
    """Raise UserError if what was read from path lacks an entry of a pretraining checkpoint."""
    found = checkpoint if isinstance(checkpoint, dict) else {}
    missing = [name for name in PRETRAINING_ENTRIES if name not in found]

    if missing:
        raise UserError(f"{path} is not from alice-pretrain: it lacks {', '.join(missing)}")
