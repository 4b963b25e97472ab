"""The segmentation network of an alice block, and loading a pretrained encoder into it."""

import math
import re
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from alice_nnunet.errors import UserError
from alice_nnunet.finetuning.block import AliceBlock
from alice_nnunet.finetuning.pretrained import PretrainedEncoder
from alice_nnunet.geometry import Triple, grid_of, triple
from alice_nnunet.model.encoders.base import Encoder
from alice_nnunet.model.encoders.nnformer import NnFormer
from alice_nnunet.model.encoders.stage import Stage
from alice_nnunet.model.encoders.swin import Swin
from alice_nnunet.model.encoders.vit import TOKEN
from alice_nnunet.model.positions import move_positions
from alice_nnunet.networks.nnformer import NnFormerNet
from alice_nnunet.networks.swin_unetr import SwinUNETR
from alice_nnunet.networks.unetr import UNETR
from alice_nnunet.settings.device import cpu_has_bf16

# The segmentation network around each encoder
NETWORKS = {"vit": UNETR, "swin": SwinUNETR, "nnformer": NnFormerNet}

BIAS = re.compile(r"stages\.\d+\.blocks\.\d+\.attention\.bias")
POSITIONS = "positions"  # a ViT's position embeddings

# Kernel of the first layer of each encoder, (E, C, z, y, x)
STEM = {
    "vit": "patch_embed.weight",
    "swin": "patch_embed.weight",
    "nnformer": "patch_embed.convolutions.0.weight",
}


def build_network(
    block: AliceBlock, input_channels: int, output_channels: int, deep_supervision: bool = False
) -> nn.Module:
    """The network that an alice block describes, with random weights.

    Args:
        block: of the plans.
        input_channels: of the images.
        output_channels: of the segmentation.
        deep_supervision: return all outputs, if there are several; the weights are the same.

    Raises:
        UserError: the block names an unknown encoder or is for another number of channels.
    """
    name = block.origin.name
    if name not in NETWORKS:
        raise UserError(
            f"the plans ask for the encoder {name!r}; known encoders: {', '.join(NETWORKS)}"
        )

    planned_channels = len(block.input["scale"])
    if planned_channels != input_channels:
        raise UserError(
            f"the plans' alice block is for {planned_channels} channels and the dataset has "
            f"{input_channels}; plan again"
        )

    network = NETWORKS[name](
        input_channels,
        output_channels,
        block.origin.arguments,
        block.input,
        **block.network_arguments,
    )
    network.half_on_cpu = block.recipe.precision != "fp32" and cpu_has_bf16()
    if block.output_levels > 1:
        network.deep_supervision = deep_supervision
    return network


def check_network(
    name: str, arguments: dict, network_arguments: dict, input_channels: int = 1
) -> None:
    """Raise UserError where no segmentation network can be built around an encoder.

    Args:
        name: of the encoder: vit, swin or nnformer.
        arguments: of its constructor.
        network_arguments: of the network, as presets hold them.
        input_channels: of the images.
    """
    one_value_each = [0.0] * input_channels
    input_map = dict.fromkeys(("scale", "shift", "low", "high"), one_value_each)
    with torch.device("meta"):  # no memory, no random numbers
        NETWORKS[name](
            input_channels, 2, arguments, {**input_map, "flip_axes": []}, **network_arguments
        )


def load_encoder(
    network: nn.Module, encoder: PretrainedEncoder, other_channels: Sequence[int] = ()
) -> list[str]:
    """Load a pretrained encoder into network.encoder: every tensor, or nothing.

    Args:
        network: from build_network.
        encoder: to load.
        other_channels: see spread_stem.

    Returns:
        Lines for the log.

    Raises:
        UserError: lists the tensors that are missing, unexpected or of another shape.
    """
    inside = cast(Encoder, network.get_submodule("encoder"))
    target = inside.state_dict()
    weights = encoder.weights

    if isinstance(network, UNETR) and network.pitch is not None:
        weights = moved_positions(weights, encoder, inside.grid, network.pitch)
    if isinstance(inside, (Swin, NnFormer)):
        weights = with_all_offsets(weights, inside)

    stem = STEM[encoder.name]
    if stem in weights:
        weights = spread_stem(weights, stem, target[stem].shape[1], other_channels)

    wrong = misfits(weights, target)
    if wrong:
        raise UserError(
            f"the weights in {encoder.path} do not fit the network of these plans, nothing was "
            f"loaded: {'; '.join(wrong)}. Plan for these weights with alice-plan, under another "
            f"name (-n) to keep both"
        )

    inside.load_state_dict(weights)
    decoder = sum(not name.startswith("encoder.") for name in network.state_dict())
    return [
        f"Loaded {len(weights)} of {len(target)} encoder tensors from {encoder.path} "
        f"(sha256 {encoder.sha256})",
        "Not loaded: none",
        f"Random: {decoder} decoder tensors",
    ]


def moved_positions(
    weights: dict[str, Tensor], encoder: PretrainedEncoder, grid: Triple, pitch: Sequence[float]
) -> dict[str, Tensor]:
    """A ViT's weights with the position embeddings of another grid of tokens.

    Args:
        weights: of the encoder. Without embeddings that fit its arguments, nothing is changed.
        encoder: that the weights are of.
        grid: tokens along (z, y, x).
        pitch: see move_positions.
    """
    token = encoder.arguments.get("token", TOKEN)
    trained = grid_of(encoder.arguments["crop_size"], token)
    positions = weights.get(POSITIONS)
    if positions is None or positions.shape[1] != math.prod(trained):
        return weights  # the caller names what does not fit
    return {**weights, POSITIONS: move_positions(positions, trained, grid, pitch)}


def with_all_offsets(weights: dict[str, Tensor], encoder: Swin | NnFormer) -> dict[str, Tensor]:
    """Weights of an encoder with windows, in which every offset between two tokens has a bias.

    A crop of the pretraining may be smaller than a window, and a patch larger than the crop.

    Args:
        weights: of the encoder.
        encoder: built for the pretraining's crop.
    """
    filled = dict(weights)
    for number, stage in enumerate(encoder.stages):
        table = cast(Stage, stage).table
        grid = encoder.stage_grid(number)
        seen = triple(min(window, tokens) for window, tokens in zip(table.window, grid))
        if seen == table.window or table.indexing != "exact":
            continue

        for name, bias in weights.items():
            is_here = BIAS.fullmatch(name) and name.startswith(f"stages.{number}.")
            if is_here and len(bias) == table.rows:  # else the caller names what does not fit
                filled[name] = table.repeat_border(bias, seen)
    return filled


def spread_stem(
    weights: dict[str, Tensor], stem: str, channels: int, others: Sequence[int] = ()
) -> dict[str, Tensor]:
    """Adapt the first layer of an encoder to the channels of a dataset.

    A kernel of 1 channel is repeated and divided by the number of channels of its kind, so that an
    image repeated over these gives what the one channel gave. For channels of another kind it is
    0: they have no effect until the network has learned it.

    Args:
        weights: of the encoder.
        stem: name of its first kernel, (E, C, z, y, x).
        channels: of the dataset.
        others: indices of the channels that the pretraining did not see.

    Returns:
        The weights with the adapted kernel.
    """
    kernel = weights[stem]

    if kernel.shape[1] == 1 and channels > 1:
        repeats = [1] * kernel.ndim
        repeats[1] = channels
        kernel = kernel.repeat(repeats) / (channels - len(others))

    if others:
        kernel = kernel.index_fill(1, torch.tensor(others), 0.0)
    return {**weights, stem: kernel}


def misfits(weights: dict[str, Tensor], target: dict[str, Tensor]) -> list[str]:
    """Describe every tensor of weights that differs from those of target in name or shape."""
    wrong = [f"{name} is missing" for name in target if name not in weights]
    wrong += [f"{name} is unexpected" for name in weights if name not in target]

    for name in target:
        if name in weights and weights[name].shape != target[name].shape:
            found = tuple(weights[name].shape)
            needed = tuple(target[name].shape)
            wrong.append(f"{name} has shape {found}, the network needs {needed}")
    return wrong
