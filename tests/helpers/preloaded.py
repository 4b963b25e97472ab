"""What the fork server of warm_processes imports: all that takes long and starts nothing."""

import gc
from multiprocessing.pool import ThreadPool

import monai  # noqa: F401
import nnunetv2.run.run_training
import nnunetv2.utilities.utils

import alice_nnunet.networks.unetr
import alice_nnunet.pretrain.embedding.job
import alice_nnunet.pretrain.training.job  # noqa: F401

# nnU-Net forks twelve processes, each time, to list the names of files.
nnunetv2.utilities.utils.Pool = ThreadPool

gc.freeze()  # a fork that collects garbage would copy all that is imported
