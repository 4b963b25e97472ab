"""The class path that plans and checkpoints name. The encoder is in alice_nnunet.model.encoders.swin."""

from alice_nnunet.model.encoders.swin import Swin

__all__ = ["Swin"]
