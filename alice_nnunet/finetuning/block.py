"""The alice block of nnU-Net's plans: what a fine-tuning needs to know of its encoder.

It is plain data at the top level of the plans. nnU-Net saves the plans with the model, so
prediction builds the network from the block alone; it needs neither the checkpoint nor an
environment variable. Its entries:

    encoder, encoder_arguments  name of the encoder and arguments of its constructor
    network_arguments           arguments of the segmentation network, such as its width, and for
                                a ViT the patch that its position embeddings are for
    weights, weights_sha256     absolute path of the checkpoint or exported folder that training
                                starts from, and its SHA-256
    input                       arguments of InputMap
    pretraining                 the checkpoint's description of its data
    recipe                      optimizer, learning rate, epochs ...: what the trainer follows
    other_channels              optional: indices of the channels that the pretraining did not
                                see, such as a PET beside a CT
    accepted_spacing            optional: the spacing of the plans, where it is another one than
                                the pretraining's and was asked for
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from alice_nnunet.errors import UserError
from alice_nnunet.finetuning.channels import match_channels
from alice_nnunet.finetuning.compatibility import spacing_differs
from alice_nnunet.finetuning.pretrained import EncoderOrigin, PretrainedEncoder
from alice_nnunet.finetuning.recipes import Recipe, recipe_from_entries
from alice_nnunet.geometry import ceil_to
from alice_nnunet.model.encoders.vit import TOKEN
from alice_nnunet.model.presets import PRESETS


@dataclass(frozen=True)
class AliceBlock:
    """The alice block with named fields; see above for what plans hold.

    Attributes:
        origin: of the encoder.
        network_arguments: of the segmentation network around it.
        input: arguments of InputMap.
        recipe: what the trainer follows.
        other_channels: indices of the channels that the pretraining did not see.
        accepted_spacing: mm (z, y, x), or None for the pretraining's.
    """

    origin: EncoderOrigin
    network_arguments: dict
    input: dict
    recipe: Recipe
    other_channels: tuple[int, ...] = ()
    accepted_spacing: tuple[float, ...] | None = None

    @property
    def output_levels(self) -> int:
        """Number of the network's outputs for deep supervision, each half as fine as the last."""
        if self.origin.name == "nnformer":
            return len(self.origin.arguments["depths"]) - 1
        return 1

    def as_entries(self) -> dict:
        """Plain data, as plans hold it."""
        entries = {
            "encoder": self.origin.name,
            "encoder_arguments": self.origin.arguments,
            "network_arguments": self.network_arguments,
            "weights": self.origin.path,
            "weights_sha256": self.origin.sha256,
            "input": self.input,
            "pretraining": self.origin.data,
            "recipe": self.recipe.as_entries(),
        }
        if self.other_channels:
            entries["other_channels"] = list(self.other_channels)
        if self.accepted_spacing is not None:
            entries["accepted_spacing"] = list(self.accepted_spacing)
        return entries


def block_from_entries(entries: dict) -> AliceBlock:
    """Read an alice block as plans hold it.

    Raises:
        UserError: its recipe cannot be followed.
    """
    spacing = entries.get("accepted_spacing")
    return AliceBlock(
        origin=EncoderOrigin(
            path=entries["weights"],
            sha256=entries["weights_sha256"],
            name=entries["encoder"],
            arguments=entries["encoder_arguments"],
            data=entries["pretraining"],
        ),
        network_arguments=entries["network_arguments"],
        input=entries["input"],
        recipe=recipe_from_entries(entries["recipe"]),
        other_channels=tuple(entries.get("other_channels", ())),
        accepted_spacing=None if spacing is None else tuple(spacing),
    )


def with_positions(block: AliceBlock, patch: Sequence[int], spacing: Sequence[float]) -> AliceBlock:
    """The block for patches of this size: a ViT's position embeddings keep their distance in mm.

    Args:
        block: of an encoder; only a ViT has such embeddings.
        patch: voxels (z, y, x) of the plans.
        spacing: mm (z, y, x) of the plans.
    """
    if block.origin.name != "vit":
        return block

    pretrained = block.origin.data["spacing"]
    pitch = [1.0, 1.0, 1.0]
    if spacing_differs(spacing, pretrained):
        pitch = [new / old for new, old in zip(spacing, pretrained)]
    token = block.origin.arguments.get("token", TOKEN)
    positions = {"size": list(ceil_to(patch, token)), "pitch": pitch}
    return replace(block, network_arguments={**block.network_arguments, "positions": positions})


def block_of_plans(plans: dict) -> AliceBlock:
    """Read the alice block of plans. Raises UserError if they have none."""
    if "alice" not in plans:
        raise UserError(
            f"the plans {plans.get('plans_name')} contain no alice block, so the network cannot be "
            f"built; train with AliceTrainer, or plan with alice-plan"
        )
    return block_from_entries(plans["alice"])


def make_block(
    encoder: PretrainedEncoder,
    schemes: list[str],
    statistics: dict[str, dict],
    recipe: Recipe,
    flip_axes: list[int],
) -> AliceBlock:
    """The block for an encoder and the images that plans make.

    Args:
        encoder: to start from.
        schemes: nnU-Net's normalization of each channel.
        statistics: the plans' foreground_intensity_properties_per_channel.
        recipe: for the trainer.
        flip_axes: see input_values.

    Raises:
        UserError: no segmentation network exists for the encoder, or the channels do not match.
    """
    if encoder.name not in PRESETS:
        raise UserError(
            f"{encoder.path} contains the encoder {encoder.name!r}; networks exist for "
            f"{', '.join(PRESETS)}"
        )

    channels = match_channels(encoder, schemes)
    return AliceBlock(
        # without preset and weights, which plans do not keep
        origin=EncoderOrigin(
            encoder.path, encoder.sha256, encoder.name, encoder.arguments, encoder.data
        ),
        network_arguments=PRESETS[encoder.name][encoder.preset].network,
        input=input_values(encoder, schemes, statistics, flip_axes),
        recipe=recipe,
        other_channels=tuple(channel.index for channel in channels if not channel.seen),
    )


def input_values(
    origin: EncoderOrigin, schemes: list[str], statistics: dict[str, dict], flip_axes: list[int]
) -> dict:
    """Arguments of InputMap: from the plans' intensities to those of the pretraining.

    Channels without a window, and those that the pretraining did not see, pass unchanged.

    Args:
        origin: of the encoder.
        schemes: nnU-Net's normalization of each channel.
        statistics: the plans' foreground_intensity_properties_per_channel.
        flip_axes: axes (0, 1, 2 for z, y, x) along which the plans' arrays run against those of
            the pretraining.
    """
    scale: list[float] = []
    shift: list[float] = []
    lowest: list[float | None] = []
    highest: list[float | None] = []

    for channel in match_channels(origin, schemes):
        if channel.window is None:
            scale.append(1.0)
            shift.append(0.0)
            lowest.append(None)
            highest.append(None)
            continue

        # the plans' value v is (HU - mean) / std; the encoder knows (HU - low) / (high - low)
        low, high = channel.window
        measured = statistics[str(channel.index)]
        scale.append(measured["std"] / (high - low))
        shift.append((measured["mean"] - low) / (high - low))
        lowest.append(0.0)
        highest.append(1.0)

    return {
        "scale": scale,
        "shift": shift,
        "low": lowest,
        "high": highest,
        "flip_axes": list(flip_axes),
    }
