"""The encoders by name."""

import torch

from alice_nnunet.errors import UserError
from alice_nnunet.geometry import Triple
from alice_nnunet.model.encoders.base import Encoder
from alice_nnunet.model.encoders.nnformer import NnFormer
from alice_nnunet.model.encoders.swin import Swin
from alice_nnunet.model.encoders.vit import ViT

ENCODERS: dict[str, type[Encoder]] = {"vit": ViT, "swin": Swin, "nnformer": NnFormer}


def unit_of(name: str, arguments: dict) -> Triple:
    """Voxels (z, y, x) of an encoder's unit: it takes crops of whole numbers of units.

    Args: see `build_encoder`.
    """
    with torch.device("meta"):
        return build_encoder(name, arguments).unit


def build_encoder(name: str, arguments: dict) -> Encoder:
    """Build an encoder with random weights.

    Args:
        name: one of ENCODERS.
        arguments: of its constructor, plain values as checkpoints and plans hold them.

    Raises:
        UserError: there is no encoder of this name.
        ValueError: the arguments do not fit each other.
    """
    if name not in ENCODERS:
        raise UserError(f"unknown encoder {name!r}; known: {', '.join(ENCODERS)}")
    return ENCODERS[name](**arguments)
