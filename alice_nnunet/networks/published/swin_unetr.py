"""Convert state dicts between our Swin UNETR and MONAI's, every tensor."""

import re

from torch import Tensor

from alice_nnunet.geometry import Triple
from alice_nnunet.model.encoders.bias_table import BiasTable
from alice_nnunet.networks.published.names import inverse, rename

# Beginnings of names, ours and MONAI's
PARTS = (
    ("encoder.patch_embed.", "swinViT.patch_embed.proj."),
    ("stem.", "encoder1."),
    ("skips.0.", "encoder2."),
    ("skips.1.", "encoder3."),
    ("skips.2.", "encoder4."),
    ("bottom.", "encoder10."),
    ("rises.0.", "decoder5."),
    ("rises.1.", "decoder4."),
    ("rises.2.", "decoder3."),
    ("rises.3.", "decoder2."),
    ("rises.4.", "decoder1."),
    ("out.", "out."),
)
# The same for what follows the name of a block
BLOCK_PARTS = (
    ("norm1.", "norm1."),
    ("norm2.", "norm2."),
    ("attention.bias", "attn.relative_position_bias_table"),
    ("attention.qkv.", "attn.qkv."),
    ("attention.out.", "attn.proj."),
    ("mlp.0.", "mlp.linear1."),
    ("mlp.2.", "mlp.linear2."),
)
# Names with numbers: (stage, block, rest) and (stage, rest). MONAI counts stages from 1.
OUR_BLOCK = re.compile(r"encoder\.stages\.(\d+)\.blocks\.(\d+)\.(.+)")
OUR_MERGE = re.compile(r"encoder\.merges\.(\d+)\.((?:norm|reduction)\..+)")
MONAI_BLOCK = re.compile(r"swinViT\.layers(\d+)\.0\.blocks\.(\d+)\.(.+)")
MONAI_MERGE = re.compile(r"swinViT\.layers(\d+)\.0\.downsample\.((?:norm|reduction)\..+)")

INDEX = "attn.relative_position_index"  # MONAI keeps it in the state dict, we compute it


def to_monai(weights: dict[str, Tensor], window: Triple) -> dict[str, Tensor]:
    """Convert our Swin UNETR's state dict to one that MONAI's SwinUNETR loads strictly.

    Not for version 2 of MONAI's network.

    Args:
        weights: our state dict.
        window: of all stages; MONAI's network has one for all.

    Raises:
        ValueError: a tensor is not of Swin UNETR.
    """
    index = BiasTable(window).full_window_rows()

    converted = {}
    for name, value in weights.items():
        block = OUR_BLOCK.fullmatch(name)
        merge = OUR_MERGE.fullmatch(name)
        if block:
            stage, number, rest = block.groups()
            place = f"swinViT.layers{int(stage) + 1}.0.blocks.{number}."
            converted[place + rename(rest, BLOCK_PARTS, "Swin UNETR", whole=name)] = value
            converted[place + INDEX] = index
        elif merge:
            stage, rest = merge.groups()
            converted[f"swinViT.layers{int(stage) + 1}.0.downsample.{rest}"] = value
        else:
            converted[rename(name, PARTS, "Swin UNETR")] = value
    return converted


def from_monai(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Convert the state dict of MONAI's SwinUNETR to one that ours loads strictly.

    Raises:
        ValueError: a tensor is not of Swin UNETR.
    """
    converted = {}
    for name, value in weights.items():
        if name.endswith(INDEX):
            continue

        block = MONAI_BLOCK.fullmatch(name)
        merge = MONAI_MERGE.fullmatch(name)
        if block:
            stage, number, rest = block.groups()
            rest = rename(rest, inverse(BLOCK_PARTS), "Swin UNETR", whole=name)
            converted[f"encoder.stages.{int(stage) - 1}.blocks.{number}.{rest}"] = value
        elif merge:
            stage, rest = merge.groups()
            converted[f"encoder.merges.{int(stage) - 1}.{rest}"] = value
        else:
            converted[rename(name, inverse(PARTS), "Swin UNETR")] = value
    return converted
