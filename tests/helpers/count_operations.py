"""Operations, launches and waits of a pretraining step on the pretended CUDA device.

    python -m tests.helpers.count_operations

Tiny presets, crops of 32 x 64 x 64 voxels, 2 pairs, bf16; the second step, when the packings of
intact grids are known. Attention is counted in calls, and in operations and launches by its plain
formula.
"""

import torch
from pytest import MonkeyPatch

from alice_nnunet.data.pairs import noise_pairs
from alice_nnunet.pretrain.training.config import make_config, read_settings
from alice_nnunet.pretrain.training.state import build_state
from alice_nnunet.pretrain.training.step import train_step
from tests.helpers.pretended_cuda import CUDA, Operations, pretended_cuda

SETTINGS = ("precision=bf16", "compile=off", "iterations=10", "warmup_iterations=0")


def count_step(encoder: str) -> Operations:
    """What a step of an encoder's tiny preset does on the device."""
    config = make_config("Dataset001_X", read_settings(encoder, "tiny", SETTINGS))
    batch = noise_pairs(2, (1, *config.encoder_arguments["crop_size"]))

    with MonkeyPatch.context() as patches, pretended_cuda(patches) as operations:
        state = build_state(config, CUDA)
        train_step(state, batch, config, (1.0, 1.0, 1.0))
        operations.reset()
        train_step(state, batch, config, (1.0, 1.0, 1.0))
    return operations


def main() -> None:
    print(f"torch {torch.__version__}")
    print("| encoder | operations | launches | calls of attention | waits |")
    print("|---|---|---|---|---|")
    for encoder in ("vit", "swin", "nnformer"):
        counted = count_step(encoder)
        print(
            f"| {encoder} | {counted.counts.total():,} | {counted.launches:,} | "
            f"{counted.attentions:,} | {len(counted.waits)} |"
        )


if __name__ == "__main__":
    main()
