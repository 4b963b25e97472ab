"""Checkpoints of a pretraining: tensors and plain values only, written beside, synced and renamed."""

from pathlib import Path

import torch

from alice_nnunet.errors import UserError
from alice_nnunet.files import replacing

PRETRAINING_KEYS = ("network_weights", "step", "config", "data", "nnssl_adaptation_plan")


def save_checkpoint(path: Path, checkpoint: dict) -> None:
    """Write checkpoint to path; whatever happens, path holds the old file or the whole new one.

    Raises UserError where the disk is full, or the folder cannot be written to.
    """
    try:
        with replacing(path) as temporary, open(temporary, "wb") as file:
            torch.save(checkpoint, file)
    except (
        OSError,
        RuntimeError,
    ) as error:  # torch says RuntimeError for whatever goes wrong while it writes
        reason = error.__context__ if isinstance(error.__context__, OSError) else error
        raise UserError(
            f"{path} could not be written ({str(reason).splitlines()[0]}); what was there before is intact. "
            f"Make room, or the folder writable, and go on from there"
        ) from error


def load_checkpoint(path: Path, device: str | torch.device = "cpu") -> dict:
    """The checkpoint in path, read with weights_only=True. Raises UserError if it is missing or cannot be read."""
    if not Path(path).is_file():
        raise UserError(f"no checkpoint at {path}")
    try:
        return torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # torch raises whatever its unpickler stumbles on: KeyError, UnpicklingError, EOFError ...
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        raise UserError(
            f"{path} is not a readable checkpoint of tensors and plain values ({reason})"
        ) from error


def load_pretraining(path: Path) -> dict:
    """What alice-pretrain wrote into a checkpoint, or alice-export into a folder, on the CPU. Raises UserError for all else."""
    if Path(path).is_dir():
        from alice_nnunet.sharing.exported import (
            load_exported,
        )  # not above: safetensors is missing on a bare GPU machine

        checkpoint = load_exported(path)
    elif Path(path).suffix == ".safetensors":
        raise UserError(
            f"{path} is a file of tensors alone; name the folder of alice-export that it lies in"
        )
    else:
        checkpoint = load_checkpoint(path)
    missing = (
        [k for k in PRETRAINING_KEYS if k not in checkpoint]
        if isinstance(checkpoint, dict)
        else PRETRAINING_KEYS
    )
    if missing:
        raise UserError(f"{path} is not from alice-pretrain: it lacks {', '.join(missing)}")
    return checkpoint
