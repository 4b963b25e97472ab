"""Optimizer and learning rates of a fine-tuning: layers near the image may learn more slowly, the encoder may start later.

Frozen means a learning rate of 0: nothing else keeps every parameter in the graph, which training on several GPUs needs.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

from torch.nn import Parameter
from torch.optim import SGD, AdamW, Optimizer

from alice_nnunet.schedules import warmup_cosine, warmup_poly


@dataclass(frozen=True)
class Group:
    """Parameters with one learning rate. share: of the recipe's rate, 0 to 1. frozen_epochs: at the start, with rate 0."""

    parameters: list[Parameter]
    share: float
    frozen_epochs: int


def encoder_depths(encoder_arguments: dict) -> list[int]:
    """Blocks in each stage of an encoder; a ViT is one stage."""
    return (
        list(encoder_arguments["depths"])
        if "depths" in encoder_arguments
        else [encoder_arguments["depth"]]
    )


def encoder_layer(name: str, depths: list[int]) -> int:
    """Layer of an encoder's tensor, counted in blocks: 0 for embedding and positions, 1 for the first block, sum(depths)
    for the last one and the norm after it. Merging counts as the block before it.

    name: in the encoder's state dict.
    """
    if match := re.match(r"(?:stages\.(\d+)\.)?blocks\.(\d+)\.", name):
        return sum(depths[: int(match[1] or 0)]) + int(match[2]) + 1
    if match := re.match(r"merges\.(\d+)\.", name):
        return sum(depths[: int(match[1]) + 1])
    return sum(depths) if name.startswith("norm.") else 0


def parameter_groups(
    named: Iterable[tuple[str, Parameter]],
    depths: list[int],
    layer_decay: float,
    frozen_epochs: int,
) -> list[Group]:
    """The decoder first, with the full rate, then the encoder's layers from the last to the first, each with layer_decay
    times the rate of the one above (BEiT, MAE). One group where neither is asked for.

    named: of a segmentation network, encoder. before the names of its encoder. depths: encoder_depths().
    """
    named = [
        (name.removeprefix("_orig_mod."), parameter) for name, parameter in named
    ]  # compiled networks carry that
    if layer_decay == 1 and not frozen_epochs:
        return [Group([parameter for _, parameter in named], 1.0, 0)]
    layers, decoder = defaultdict(list), sum(depths) + 1
    for name, parameter in named:
        inside = name.startswith("encoder.")
        layers[encoder_layer(name.removeprefix("encoder."), depths) if inside else decoder].append(
            parameter
        )
    return [
        Group(
            layers[layer], layer_decay ** (decoder - layer), frozen_epochs if layer < decoder else 0
        )
        for layer in sorted(layers, reverse=True)
    ]


def build_optimizer(groups: list[Group], recipe: dict) -> Optimizer:
    """The recipe's optimizer; SGD with Nesterov's momentum, as nnU-Net's."""
    parameters = [{"params": group.parameters} for group in groups]
    if recipe["optimizer"] == "SGD":
        return SGD(
            parameters,
            recipe["learning_rate"],
            recipe["momentum"],
            weight_decay=recipe["weight_decay"],
            nesterov=True,
        )
    return AdamW(
        parameters,
        recipe["learning_rate"],
        (recipe["momentum"], 0.999),
        weight_decay=recipe["weight_decay"],
    )


def group_rates(groups: list[Group], recipe: dict) -> list[Callable[[int], float]]:
    """For each group, epoch -> learning rate: linear warm-up, then a cosine or poly decay that would reach 0 after the last
    epoch, times the group's share; 0 while it is frozen."""
    common = {"warmup": recipe["warmup_epochs"], "peak": recipe["learning_rate"]}
    if recipe["schedule"] == "poly":
        rate_at = partial(warmup_poly, steps=recipe["epochs"], **common)
    else:
        rate_at = partial(warmup_cosine, steps=recipe["epochs"] + 1, **common)
    return [partial(group_rate, rate_at=rate_at, group=group) for group in groups]


def group_rate(epoch: int, rate_at: Callable[[int], float], group: Group) -> float:
    return 0.0 if epoch < group.frozen_epochs else group.share * rate_at(epoch)
