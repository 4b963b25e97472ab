"""Class path in plans and checkpoints; the class is in alice_nnunet.model.encoders.swin."""

from alice_nnunet.model.encoders.swin import Swin

__all__ = ["Swin"]
