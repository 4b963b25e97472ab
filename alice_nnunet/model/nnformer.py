"""The class path that plans and checkpoints name. The encoder is in alice_nnunet.model.encoders.nnformer."""

from alice_nnunet.model.encoders.nnformer import NnFormer

__all__ = ["NnFormer"]
