"""The folder that alice-export writes: an encoder without pickles, to share or upload.

model.safetensors      the encoder's tensors, with the names that they have in a checkpoint
config.json            step, config and data of the checkpoint, the SHA-256 of model.safetensors,
                       the last metrics
adaptation_plan.json   nnssl's AdaptationPlan
README.md              model card
monai.safetensors or   the same tensors with the names of MONAI's or nnFormer's network, where
nnformer.safetensors   there is one
"""

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

import alice_nnunet
from alice_nnunet.checkpoint import check_entries
from alice_nnunet.errors import UserError
from alice_nnunet.files import file_sha256, write_json_atomically

MODEL = "model.safetensors"
CONFIG = "config.json"
PLAN = "adaptation_plan.json"
CARD = "README.md"

FORMAT = "alice-nnunet encoder, 1"
COPIED = ("step", "config", "data")  # entries of a checkpoint that config.json repeats


def write_exported(folder: Path, checkpoint: dict, plan: dict) -> dict:
    """Write model.safetensors, config.json and adaptation_plan.json.

    Args:
        folder: existing folder to write into.
        checkpoint: from load_pretraining, with its history.
        plan: AdaptationPlan in nnssl's schema.

    Returns:
        The content of config.json.
    """
    save_tensors(folder / MODEL, checkpoint["network_weights"])

    content = {
        "format": FORMAT,
        "alice_nnunet": alice_nnunet.__version__,
        "weights_sha256": file_sha256(folder / MODEL),
        **{name: checkpoint[name] for name in COPIED},
        "metrics": last_metrics(checkpoint.get("history", {})),
    }
    write_json_atomically(folder / CONFIG, content)
    write_json_atomically(folder / PLAN, plan)
    return content


def last_metrics(history: dict) -> dict:
    """The last entry of each curve.

    Args:
        history: of a checkpoint, {name: [[step, value], ...]}.

    Returns:
        {name: {"step": step, "value": value}}.
    """
    return {
        name: {"step": curve[-1][0], "value": curve[-1][1]}
        for name, curve in sorted(history.items())
        if curve
    }


def save_tensors(path: Path, weights: dict[str, Tensor]) -> None:
    """Write weights as safetensors; tensors that share memory are written separately."""
    separate = {name: tensor.detach().clone().contiguous() for name, tensor in weights.items()}

    # save_file would make a file that only its owner can read, whatever the umask is
    path.write_bytes(save(separate, {"format": "pt"}))


def load_exported(folder: str | Path) -> dict:
    """Read an exported folder.

    Returns:
        The entries that load_pretraining gives for the checkpoint it was exported from.

    Raises:
        UserError: a file is missing, damaged or foreign.
    """
    folder = Path(folder)
    content = read_json(folder, CONFIG)
    plan = read_json(folder, PLAN)

    found = content.get("format") if isinstance(content, dict) else None
    if found != FORMAT:
        raise UserError(
            f"{folder / CONFIG} is not of alice-export: its format is {found!r} instead of "
            f"{FORMAT!r}"
        )

    expected = content.get("weights_sha256")
    found = model_sha256(folder)
    if found != expected:
        raise UserError(
            f"{folder / MODEL} is damaged or is not the file that was exported: its sha256 is "
            f"{found}, {CONFIG} says {expected}; copy or download it again"
        )

    try:
        weights = load_file(folder / MODEL)
    except SafetensorError as error:
        raise UserError(f"{folder / MODEL} is not a safetensors file ({error})") from error

    checkpoint = {
        "network_weights": weights,
        "adaptation_plan": plan,
        **{name: content[name] for name in COPIED if name in content},
    }
    check_entries(checkpoint, folder)
    return checkpoint


def model_sha256(folder: str | Path) -> str:
    """SHA-256 of the tensors in an exported folder. Raises UserError if they are missing."""
    path = Path(folder) / MODEL
    if not path.is_file():
        raise UserError(f"no {MODEL} in {folder}: it is not a complete folder of alice-export")
    return file_sha256(path)


def read_json(folder: Path, name: str) -> Any:
    """Read a JSON file of an exported folder. Raises UserError if it is missing or broken."""
    try:
        return json.loads((folder / name).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"no {name} in {folder}: it is not a complete folder of alice-export"
        ) from None
    except ValueError as error:
        raise UserError(f"{folder / name} is not valid JSON ({error})") from error
