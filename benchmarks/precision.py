"""bf16 against fp32 on this CPU: a step of fine-tuning and the prediction of a patch.

    python benchmarks/precision.py [--presets tiny small] [--encoders vit swin nnformer]

One thread. Both precisions take turns in one process, and the median ratio of neighbouring steps is
printed: other work on the machine slows both down. A step is forward pass, nnU-Net's loss, backward
pass and AdamW.
"""

import argparse
import statistics
import time

import torch
from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from torch import Tensor

from alice_nnunet.finetuning.network import NETWORKS
from alice_nnunet.model.presets import PRESETS
from alice_nnunet.networks.precision import SegmentationNetwork
from alice_nnunet.settings.device import cpu_has_bf16

CLASSES = 8
WINDOW = {"scale": [1.0], "shift": [0.0], "low": [0.0], "high": [1.0], "flip_axes": []}
PATCHES = {"tiny": (2, 32, 64, 64), "small": (1, 64, 128, 128), "paper": (1, 64, 192, 192)}
REPEATS = 5


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--presets", nargs="+", default=["tiny", "small"], choices=list(PATCHES))
    parser.add_argument("--encoders", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    arguments = parser.parse_args()

    torch.set_num_threads(1)
    print(f"this CPU has bf16: {cpu_has_bf16()}\n")
    print("| encoder | preset | | fp32, CPU s | bf16, CPU s | fp32 / bf16 |")
    print("|---|---|---|---|---|---|")
    for preset in arguments.presets:
        for encoder in arguments.encoders:
            compare(encoder, preset)


def compare(encoder: str, preset: str) -> None:
    """Print a line for training and one for prediction."""
    batch, *size = PATCHES[preset]
    chosen = PRESETS[encoder][preset]
    arguments = {**chosen.encoder, "in_channels": 1, "crop_size": tuple(size)}
    network = NETWORKS[encoder](1, CLASSES, arguments, WINDOW, **chosen.network)
    optimizer = torch.optim.AdamW(network.parameters(), 1e-4)
    image = torch.rand(batch, 1, *size)
    labels = torch.randint(0, CLASSES, image.shape)

    for training in (True, False):
        network.train(training)
        seconds: dict[bool, list[float]] = {False: [], True: []}
        for repeat in range(REPEATS + 1):
            for half in (False, True):
                network.half_on_cpu = half
                before = time.process_time()
                if training:
                    train(network, optimizer, image, labels)
                else:
                    predict(network, image)
                if repeat:
                    seconds[half].append(time.process_time() - before)

        ratio = statistics.median(a / b for a, b in zip(seconds[False], seconds[True]))
        medians = [statistics.median(seconds[half]) for half in (False, True)]
        what = "training" if training else "prediction"
        print(
            f"| {encoder} | {preset} | {what} | {medians[0]:.2f} | {medians[1]:.2f} | "
            f"{ratio:.2f} |",
            flush=True,
        )


def train(
    network: SegmentationNetwork, optimizer: torch.optim.Optimizer, image: Tensor, labels: Tensor
) -> None:
    """One step with nnU-Net's loss."""
    loss = DC_and_CE_loss(
        {"batch_dice": True, "smooth": 1e-5, "do_bg": False, "ddp": False},
        {},
        dice_class=MemoryEfficientSoftDiceLoss,
    )
    optimizer.zero_grad()
    loss(network(image), labels).backward()
    optimizer.step()


@torch.no_grad()
def predict(network: SegmentationNetwork, image: Tensor) -> None:
    network(image)


if __name__ == "__main__":
    main()
