"""The folder that alice-export writes: an encoder without pickles, to be handed on or put on the Hugging Face hub.

model.safetensors      the encoder's tensors, by the names they have in a checkpoint
config.json            what else load_pretraining gives (step, config, data), the SHA-256 of model.safetensors, last metrics
adaptation_plan.json   nnssl's AdaptationPlan
README.md              model card
monai.safetensors, or nnformer.safetensors: the same tensors by the names of MONAI's or nnFormer's network, where there are such
"""

import json
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

import alice_nnunet
from alice_nnunet.errors import UserError
from alice_nnunet.files import file_sha256, write_json_atomically

MODEL, CONFIG, PLAN, CARD = "model.safetensors", "config.json", "adaptation_plan.json", "README.md"
FORMAT = "alice-nnunet encoder, 1"


def last_metrics(history: dict) -> dict:
    """{name: {"step", "value"}} of the last entry of each curve of a checkpoint's history, {name: [[step, value], ...]}."""
    return {
        name: {"step": curve[-1][0], "value": curve[-1][1]}
        for name, curve in sorted(history.items())
        if curve
    }


def write_exported(folder: Path, checkpoint: dict, plan: dict) -> dict:
    """Write model.safetensors, config.json and adaptation_plan.json into folder. Returns config.json's content.

    checkpoint: of load_pretraining, with its history. plan: in nnssl's schema.
    """
    save_tensors(folder / MODEL, checkpoint["network_weights"])
    content = {
        "format": FORMAT,
        "alice_nnunet": alice_nnunet.__version__,
        "weights_sha256": file_sha256(folder / MODEL),
        **{key: checkpoint[key] for key in ("step", "config", "data")},
        "metrics": last_metrics(checkpoint.get("history", {})),
    }
    write_json_atomically(folder / CONFIG, content)
    write_json_atomically(folder / PLAN, plan)
    return content


def save_tensors(path: Path, weights: dict[str, Tensor]) -> None:
    """weights as safetensors, readable for whom the umask lets; tensors that share memory are written one by one."""
    path.write_bytes(
        save(
            {name: tensor.detach().clone().contiguous() for name, tensor in weights.items()},
            {"format": "pt"},
        )
    )


def load_exported(folder: Path) -> dict:
    """What load_pretraining gives, from an exported folder. Raises UserError that names the file for any other folder, and
    for tensors that are not the exported ones."""
    folder = Path(folder)
    content, plan = (read_json(folder, name) for name in (CONFIG, PLAN))
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = content.get("format") if isinstance(content, dict) else None
        raise UserError(
            f"{folder / CONFIG} is not of alice-export: its format is {found!r} instead of {FORMAT!r}"
        )
    if (found := model_sha256(folder)) != content.get("weights_sha256"):
        raise UserError(
            f"{folder / MODEL} is damaged or is not the file that was exported: its sha256 is {found}, {CONFIG} says "
            f"{content.get('weights_sha256')}; copy or download it again"
        )
    try:
        weights = load_file(folder / MODEL)
    except SafetensorError as error:
        raise UserError(f"{folder / MODEL} is no safetensors file ({error})") from error
    return {
        "network_weights": weights,
        "nnssl_adaptation_plan": plan,
        **{key: content[key] for key in ("step", "config", "data") if key in content},
    }


def model_sha256(folder: Path) -> str:
    """SHA-256 of an exported folder's tensors. Raises UserError where there are none."""
    if not (Path(folder) / MODEL).is_file():
        raise UserError(f"no {MODEL} in {folder}: it is not a whole folder of alice-export")
    return file_sha256(Path(folder) / MODEL)


def read_json(folder: Path, name: str) -> object:
    """A JSON file of an exported folder. Raises UserError if it is missing or broken."""
    try:
        return json.loads((folder / name).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"no {name} in {folder}: it is not a whole folder of alice-export"
        ) from None
    except ValueError as error:
        raise UserError(f"{folder / name} is no valid JSON ({error})") from error
