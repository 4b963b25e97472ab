"""Alice pretraining for nnU-Net: the library.

Pretraining is in alice_nnunet.pretrain, nnU-Net's trainers are in alice_nnunet.trainers.

    encoder, prepare = alice_nnunet.load_encoder("owner/name@v1")
"""

__version__ = "0.1.0"
__all__ = ["load_encoder"]


def __getattr__(name: str):
    """Import load_encoder when it is asked for: the commands' help must not import torch."""
    if name == "load_encoder":
        from alice_nnunet.features.encoder import load_encoder

        return load_encoder
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
