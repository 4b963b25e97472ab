"""A pretrained encoder, and the one place that loads it.

It comes from a checkpoint of alice-pretrain, a folder of alice-export or a Hugging Face repository.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from alice_nnunet.checkpoint import load_pretraining, unfinished
from alice_nnunet.sharing.exported import load_exported
from alice_nnunet.sharing.weights import find_weights, weights_sha256


@dataclass(frozen=True)
class EncoderOrigin:
    """Where an encoder comes from: what plans keep of it. Plain JSON values.

    Attributes:
        path: absolute path of the checkpoint or exported folder.
        sha256: of the checkpoint, or of the tensors in the exported folder.
        name: vit, swin or nnformer.
        arguments: of the encoder's constructor.
        data: the checkpoint's description of the images: orientation, spacing, channels ...
    """

    path: str
    sha256: str
    name: str
    arguments: dict
    data: dict


@dataclass(frozen=True)
class PretrainedEncoder(EncoderOrigin):
    """An encoder as a pretraining left it.

    Attributes:
        preset: tiny, small or paper.
        weights: tensors by the names of the encoder's state dict, on the CPU.
        unfinished: "step 24 of 80" of a pretraining that has not ended, else None.
    """

    preset: str
    weights: dict[str, Tensor]
    unfinished: str | None = None


def load_pretrained(given: str | Path) -> PretrainedEncoder:
    """Load what a user gives as weights.

    Args:
        given: checkpoint or results folder of alice-pretrain, folder of alice-export, or Hugging
            Face repository (owner/name or owner/name@revision).

    Raises:
        UserError: it is missing, cannot be read or is not from alice-pretrain.
    """
    path = find_weights(str(given))
    checkpoint = load_exported(path) if Path(path).is_dir() else load_pretraining(path)

    config = checkpoint["config"]
    return PretrainedEncoder(
        path=path,
        sha256=weights_sha256(path),
        name=config["encoder"],
        arguments=as_json(config["encoder_arguments"]),
        data=as_json(checkpoint["data"]),
        preset=config["preset"],
        weights=checkpoint["network_weights"],
        unfinished=unfinished(checkpoint),
    )


def as_json(value: dict) -> dict:
    """The same values as they come back from a JSON file: lists for tuples."""
    return json.loads(json.dumps(value))


def differences(planned: EncoderOrigin, found: EncoderOrigin) -> list[str]:
    """What differs between two pretrainings: encoder, window, orientation and so on."""
    expected = {"encoder": planned.name, "encoder_arguments": planned.arguments, **planned.data}
    actual = {"encoder": found.name, "encoder_arguments": found.arguments, **found.data}

    if found.name != planned.name:
        del expected["encoder_arguments"]

    return [
        f"{key} {actual.get(key)} instead of {value}"
        for key, value in expected.items()
        if actual.get(key) != value
    ]
