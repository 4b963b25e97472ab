"""Class path in plans and checkpoints; the class is in alice_nnunet.model.encoders.vit."""

from alice_nnunet.model.encoders.vit import ViT

__all__ = ["ViT"]
