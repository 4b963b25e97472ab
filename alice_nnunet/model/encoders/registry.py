"""The encoders by name."""

import torch

from alice_nnunet.errors import UserError
from alice_nnunet.geometry import Triple
from alice_nnunet.model.encoders.nnformer import NnFormer
from alice_nnunet.model.encoders.swin import Swin
from alice_nnunet.model.encoders.vit import ViT

ENCODERS = {"vit": ViT, "swin": Swin, "nnformer": NnFormer}


def unit_of(name: str, arguments: dict) -> Triple:
    """Voxels (z, y, x) of the encoder's unit: what it takes are whole numbers of them. arguments: see build_encoder."""
    with torch.device("meta"):
        return build_encoder(name, arguments).unit


def build_encoder(name: str, arguments: dict):
    """The encoder called name. arguments: its constructor's, plain values, as a checkpoint and plans hold them."""
    if name not in ENCODERS:
        raise UserError(f"unknown encoder {name!r}; known: {', '.join(ENCODERS)}")
    return ENCODERS[name](**arguments)
