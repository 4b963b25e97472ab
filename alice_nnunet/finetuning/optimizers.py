"""Optimizer and learning rates of a fine-tuning.

Layers near the image may learn more slowly, and the encoder may start later. A frozen parameter has
a learning rate of 0: it stays in the graph, as training on several GPUs needs.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

from torch.nn import Parameter
from torch.optim import SGD, AdamW, Optimizer

from alice_nnunet.finetuning.recipes import Recipe
from alice_nnunet.schedules import warmup_cosine, warmup_poly


@dataclass(frozen=True)
class Group:
    """Parameters with one learning rate.

    Attributes:
        parameters: of the network.
        share: of the recipe's learning rate, 0 to 1.
        frozen_epochs: epochs at the start with a learning rate of 0.
    """

    parameters: list[Parameter]
    share: float
    frozen_epochs: int


def encoder_depths(arguments: dict) -> list[int]:
    """Blocks in each stage of an encoder; a ViT is one stage. arguments: of its constructor."""
    if "depths" in arguments:
        return list(arguments["depths"])
    return [arguments["depth"]]


def encoder_layer(name: str, depths: list[int]) -> int:
    """Layer of an encoder's tensor, counted in blocks.

    Args:
        name: of the tensor in the encoder's state dict.
        depths: blocks in each stage.

    Returns:
        0 for embedding and positions, 1 for the first block, sum(depths) for the last one and the
        norm after it. Merging belongs to the block before it.
    """
    if match := re.match(r"(?:stages\.(\d+)\.)?blocks\.(\d+)\.", name):
        stage = int(match[1] or 0)
        return sum(depths[:stage]) + int(match[2]) + 1

    if match := re.match(r"merges\.(\d+)\.", name):
        stage = int(match[1])
        return sum(depths[: stage + 1])

    return sum(depths) if name.startswith("norm.") else 0


def parameter_groups(
    named: Iterable[tuple[str, Parameter]],
    depths: list[int],
    layer_decay: float,
    frozen_epochs: int,
) -> list[Group]:
    """Groups of parameters for the recipe's layer_decay and frozen_epochs (as in BEiT and MAE).

    Args:
        named: parameters of a segmentation network; its encoder's names begin with `encoder.`.
        depths: of its encoder, see encoder_depths.
        layer_decay: learning rate of a layer of the encoder as a share of that of the next one.
        frozen_epochs: epochs at the start in which the encoder does not change.

    Returns:
        First the decoder, with the full rate, then the encoder's layers from the last to the
        first. One group where neither decay nor freezing is asked for.
    """
    # networks that torch.compile wrapped have a prefix
    named = [(name.removeprefix("_orig_mod."), parameter) for name, parameter in named]

    if layer_decay == 1 and not frozen_epochs:
        return [Group([parameter for _, parameter in named], 1.0, 0)]

    decoder = sum(depths) + 1
    layers = defaultdict(list)
    for name, parameter in named:
        if name.startswith("encoder."):
            layer = encoder_layer(name.removeprefix("encoder."), depths)
        else:
            layer = decoder
        layers[layer].append(parameter)

    groups = []
    for layer in sorted(layers, reverse=True):
        share = layer_decay ** (decoder - layer)
        frozen = frozen_epochs if layer < decoder else 0
        groups.append(Group(layers[layer], share, frozen))
    return groups


def build_optimizer(groups: list[Group], recipe: Recipe) -> Optimizer:
    """The recipe's optimizer; SGD has Nesterov momentum, as in nnU-Net."""
    parameters = [{"params": group.parameters} for group in groups]

    if recipe.optimizer == "SGD":
        return SGD(
            parameters,
            recipe.learning_rate,
            recipe.momentum,
            weight_decay=recipe.weight_decay,
            nesterov=True,
        )
    return AdamW(
        parameters,
        recipe.learning_rate,
        (recipe.momentum, 0.999),
        weight_decay=recipe.weight_decay,
    )


def group_rates(groups: list[Group], recipe: Recipe) -> list[Callable[[int], float]]:
    """For each group, a function from the epoch to its learning rate.

    The rate rises linearly in the warm-up, then decays as a cosine or a polynomial that would
    reach 0 after the last epoch. It is multiplied by the group's share, and 0 while the group is
    frozen.
    """
    if recipe.schedule == "poly":
        decay = partial(warmup_poly, steps=recipe.epochs)
    else:
        decay = partial(warmup_cosine, steps=recipe.epochs + 1)

    rate_at = partial(decay, warmup=recipe.warmup_epochs, peak=recipe.learning_rate)
    return [partial(group_rate, rate_at=rate_at, group=group) for group in groups]


def group_rate(epoch: int, rate_at: Callable[[int], float], group: Group) -> float:
    return 0.0 if epoch < group.frozen_epochs else group.share * rate_at(epoch)
