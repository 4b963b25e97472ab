"""Alice pretraining for nnU-Net: the library.

Pretraining is in alice_nnunet.pretrain, nnU-Net's trainers are in alice_nnunet.trainers.
"""

__version__ = "0.1.0"
