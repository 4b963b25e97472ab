"""Class path in plans and checkpoints; the class is in alice_nnunet.model.encoders.nnformer."""

from alice_nnunet.model.encoders.nnformer import NnFormer

__all__ = ["NnFormer"]
