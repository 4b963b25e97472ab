"""The encoders by name, and their presets."""

import torch

from alice_nnunet.errors import UserError
from alice_nnunet.geometry import Triple
from alice_nnunet.model.encoders.nnformer import NnFormer
from alice_nnunet.model.encoders.swin import Swin
from alice_nnunet.model.encoders.vit import ViT

ENCODERS = {"vit": ViT, "swin": Swin, "nnformer": NnFormer}

# Arguments of each encoder apart from in_channels and crop_size. The tiny presets have three stages, not four: their units
# are half as long, so that hiding three quarters of a crop of (32, 64, 64) voxels leaves a choice. With four there would be
# 4 units in it for swin and 8 for nnformer, with three there are 32 and 64.
PRESETS = {
    "vit": {
        "tiny": {"width": 192, "depth": 4, "heads": 3},
        "small": {"width": 384, "depth": 8, "heads": 6},
        "paper": {"width": 768, "depth": 12, "heads": 12},
    },
    "swin": {
        "tiny": {
            "embed_width": 16,
            "depths": (2, 2, 2),
            "heads": (1, 2, 4),
            "windows": 3 * ((4, 4, 4),),
        },
        "small": {
            "embed_width": 24,
            "depths": (2, 2, 2, 2),
            "heads": (3, 6, 12, 24),
            "windows": 4 * ((7, 7, 7),),
        },
        "paper": {
            "embed_width": 48,
            "depths": (2, 2, 2, 2),
            "heads": (3, 6, 12, 24),
            "windows": 4 * ((7, 7, 7),),
        },
    },
    "nnformer": {
        "tiny": {
            "embed_width": 32,
            "depths": (2, 2, 2),
            "heads": (2, 4, 8),
            "windows": 3 * ((4, 4, 4),),
        },
        "small": {
            "embed_width": 96,
            "depths": (2, 2, 2, 2),
            "heads": (3, 6, 12, 24),
            "windows": ((4, 4, 4), (4, 4, 4), (8, 8, 8), (4, 4, 4)),
        },
        "paper": {
            "embed_width": 192,
            "depths": (2, 2, 2, 2),
            "heads": (6, 12, 24, 48),
            "windows": ((4, 4, 4), (4, 4, 4), (8, 8, 8), (4, 4, 4)),
        },
    },
}


def unit_of(name: str, arguments: dict) -> Triple:
    """Voxels (z, y, x) of the encoder's unit: what it takes are whole numbers of them. arguments: see build_encoder."""
    with torch.device("meta"):
        return build_encoder(name, arguments).unit


def build_encoder(name: str, arguments: dict):
    """The encoder called name. arguments: its constructor's, plain values, as a checkpoint and plans hold them."""
    if name not in ENCODERS:
        raise UserError(f"unknown encoder {name!r}; known: {', '.join(ENCODERS)}")
    return ENCODERS[name](**arguments)
