"""The class path that plans and checkpoints name. The encoder is in alice_nnunet.model.encoders.vit."""

from alice_nnunet.model.encoders.vit import ViT

__all__ = ["ViT"]
