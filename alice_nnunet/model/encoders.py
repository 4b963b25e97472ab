"""The encoders by name, and their presets."""

from alice_nnunet.errors import UserError
from alice_nnunet.model.vit import ViT

ENCODERS = {"vit": ViT}

# Arguments of each encoder apart from in_channels and crop_size.
PRESETS = {
    "vit": {
        "tiny": {"width": 192, "depth": 4, "heads": 3},
        "small": {"width": 384, "depth": 8, "heads": 6},
        "paper": {"width": 768, "depth": 12, "heads": 12},
    },
}


def build_encoder(name: str, arguments: dict):
    """The encoder called name. arguments: its constructor's, plain values, as a checkpoint and plans hold them."""
    if name not in ENCODERS:
        raise UserError(f"unknown encoder {name!r}; known: {', '.join(ENCODERS)}")
    return ENCODERS[name](**arguments)
