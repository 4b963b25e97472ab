"""From a pretraining checkpoint to a segmentation network: the alice block of the plans, the network, the weights.

The alice block is plain data at the top level of nnU-Net's plans. nnU-Net saves the plans with the model, so
prediction builds the network from the block alone and needs neither the checkpoint nor an environment variable:

    encoder, encoder_arguments    which encoder, and its constructor's arguments as the pretraining had them
    network_arguments             what the segmentation network around it takes beside these, such as its width
    weights, weights_sha256       absolute path of the checkpoint, or exported folder, that training starts from, and its hash
    input                         InputMap's arguments
    pretraining                   the checkpoint's description of its data
    other_channels                indices of the channels that it did not see, such as a PET beside a CT; only where there are any
    accepted_spacing              the plans' spacing, only where it is not the pretraining's and was asked for
    recipe                        optimizer, learning rate, epochs ...: what the trainer follows
"""

import json
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from alice_nnunet.errors import UserError
from alice_nnunet.finetuning.compatibility import other_channels, pretraining_channel
from alice_nnunet.model.presets import PRESETS
from alice_nnunet.networks.nnformer import NnFormerNet
from alice_nnunet.networks.swin_unetr import SwinUNETR
from alice_nnunet.networks.unetr import UNETR

NETWORKS = {
    "vit": UNETR,
    "swin": SwinUNETR,
    "nnformer": NnFormerNet,
}  # the segmentation network around each encoder
# the first layer of each encoder, (E, C, z, y, x)
STEM = {
    "vit": "patch_embed.weight",
    "swin": "patch_embed.weight",
    "nnformer": "patch_embed.convolutions.0.weight",
}


def input_values(
    data: dict, plans: dict, configuration: dict, flip_axes: list[int], path: str
) -> dict:
    """InputMap's arguments: from what these plans make of an image to what the encoder was pretrained on.

    data: of the checkpoint in path. plans, configuration: nnU-Net's. flip_axes: axes (0, 1, 2 for z, y, x) along which
    the plans' arrays run against the pretraining's. Channels without a window, and those that the pretraining did not
    see, pass unchanged.
    """
    schemes, values = (
        configuration["normalization_schemes"],
        {"scale": [], "shift": [], "low": [], "high": []},
    )
    others = other_channels(data, schemes, path)
    for index in range(len(schemes)):
        window, row = (
            pretraining_channel(data, index, len(schemes), path)["window"],
            (1.0, 0.0, None, None),
        )
        if window is not None and index not in others:
            low, high = window
            statistics = plans["foreground_intensity_properties_per_channel"][str(index)]
            row = (
                statistics["std"] / (high - low),
                (statistics["mean"] - low) / (high - low),
                0.0,
                1.0,
            )
        for column, value in zip(values.values(), row):
            column.append(value)
    return {**values, "flip_axes": list(flip_axes)}


def alice_block(
    checkpoint: dict,
    path: str,
    sha256: str,
    plans: dict,
    configuration: dict,
    recipe: dict,
    flip_axes: list[int],
) -> dict:
    """The alice block (see above) for a checkpoint and nnU-Net's plans.

    checkpoint: load_pretraining(path). recipe: recipes.training_recipe's. flip_axes: see input_values.
    Raises UserError for an encoder that has no segmentation network.
    """
    encoder, preset = checkpoint["config"]["encoder"], checkpoint["config"]["preset"]
    if encoder not in NETWORKS:
        raise UserError(
            f"{path} holds the encoder {encoder!r}; networks exist for {', '.join(NETWORKS)}"
        )
    block = {
        "encoder": encoder,
        "encoder_arguments": checkpoint["config"]["encoder_arguments"],
        "network_arguments": PRESETS[encoder][preset].network,
        "weights": path,
        "weights_sha256": sha256,
        "input": input_values(checkpoint["data"], plans, configuration, flip_axes, path),
        "pretraining": checkpoint["data"],
        "recipe": recipe,
    }
    if others := other_channels(checkpoint["data"], configuration["normalization_schemes"], path):
        block["other_channels"] = others
    return json.loads(json.dumps(block))  # as it will come back from a plans file: lists for tuples


def output_levels(block: dict) -> int:
    """How many outputs the network of an alice block has for deep supervision, each half as fine as the one before."""
    return len(block["encoder_arguments"]["depths"]) - 1 if block["encoder"] == "nnformer" else 1


def build_network(
    block: dict, num_input_channels: int, num_output_channels: int, deep_supervision: bool = False
) -> nn.Module:
    """The segmentation network that an alice block describes, random weights. Raises UserError if it cannot be built.

    deep_supervision: give all outputs, where there are several; the weights are the same.
    """
    if block["encoder"] not in NETWORKS:
        raise UserError(
            f"the plans ask for the encoder {block['encoder']!r}; known: {', '.join(NETWORKS)}"
        )
    if len(block["input"]["scale"]) != num_input_channels:
        raise UserError(
            f"the plans' alice block is for {len(block['input']['scale'])} channels and the dataset has "
            f"{num_input_channels}; plan again"
        )
    network = NETWORKS[block["encoder"]](
        num_input_channels,
        num_output_channels,
        block["encoder_arguments"],
        block["input"],
        **block["network_arguments"],
    )
    if output_levels(block) > 1:
        network.deep_supervision = deep_supervision
    return network


def spread_stem(
    weights: dict[str, Tensor], stem: str, channels: int, others: Sequence[int] = ()
) -> dict[str, Tensor]:
    """Weights for a network of several channels, some of which, others, the pretraining did not see.

    Weights of 1 channel: the stem repeated and divided by the number of channels that are like it, so that an image
    repeated over these gives what the pretraining's one channel gave. For others it is 0: what is in them has no
    effect until it is learned.
    """
    kernel = weights[stem]
    if kernel.shape[1] == 1 and channels > 1:
        kernel = kernel.repeat(1, channels, *[1] * (kernel.ndim - 2)) / (channels - len(others))
    if others:
        kernel = kernel.index_fill(1, torch.tensor(others), 0.0)
    return {**weights, stem: kernel}


def load_encoder(
    network: nn.Module,
    encoder: str,
    checkpoint: dict,
    path: str,
    sha256: str,
    others: Sequence[int] = (),
) -> list[str]:
    """Load a pretraining checkpoint into network.encoder: every tensor, by its name and shape, or nothing.

    network: of build_network. encoder: its name, for the stem. path, sha256: of the checkpoint, for the log. others: see spread_stem.
    Returns lines for the log. Raises UserError that lists tensors missing, unexpected or of another shape.
    """
    target, weights = network.encoder.state_dict(), checkpoint["network_weights"]
    if STEM[encoder] in weights:
        weights = spread_stem(weights, STEM[encoder], target[STEM[encoder]].shape[1], others)
    wrong = [f"{name} is missing" for name in target if name not in weights]
    wrong += [f"{name} is unexpected" for name in weights if name not in target]
    wrong += [
        f"{name} has shape {tuple(weights[name].shape)}, the network needs {tuple(target[name].shape)}"
        for name in target
        if name in weights and weights[name].shape != target[name].shape
    ]
    if wrong:
        raise UserError(
            f"the weights in {path} do not fit the network of these plans, nothing was loaded: "
            f"{'; '.join(wrong)}. Plan for these weights with alice-plan, under another name (-n) to keep both"
        )
    network.encoder.load_state_dict(weights)
    others = sum(not name.startswith("encoder.") for name in network.state_dict())
    return [
        f"Loaded {len(weights)} of {len(target)} encoder tensors from {path} (sha256 {sha256})",
        "Not loaded: none",
        f"Random: {others} decoder tensors",
    ]
