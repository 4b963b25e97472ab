"""Alice pretraining for nnU-Net: the library. The commands are in alice_nnunet.pretrain, the trainers in alice_nnunet.trainers."""

__version__ = "0.1.0"
