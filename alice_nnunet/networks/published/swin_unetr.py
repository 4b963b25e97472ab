"""State dicts of our Swin UNETR and of MONAI's, one turned into the other, every tensor."""

import re

import torch
from torch import Tensor

from alice_nnunet.geometry import Triple
from alice_nnunet.model.encoders.bias_table import BiasTable
from alice_nnunet.model.encoders.windows import box_positions

# (our name, MONAI's), with what follows or stands between taken over; {} is a number, MONAI counts stages from 1
BLOCK = (
    ("norm1.", "norm1."),
    ("norm2.", "norm2."),
    ("attention.bias", "attn.relative_position_bias_table"),
    ("attention.qkv.", "attn.qkv."),
    ("attention.out.", "attn.proj."),
    ("mlp.0.", "mlp.linear1."),
    ("mlp.2.", "mlp.linear2."),
)
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
OURS = re.compile(
    r"encoder\.stages\.(\d+)\.(blocks\.\d+)\.(.+)|encoder\.merges\.(\d+)\.((?:norm|reduction)\..+)"
)
MONAIS = re.compile(
    r"swinViT\.layers(\d+)\.0\.(?:(blocks\.\d+)\.(.+)|downsample\.((?:norm|reduction)\..+))"
)
INDEX = "attn.relative_position_index"  # MONAI keeps it, we compute it


def rename(key: str, rules: tuple, ours: int) -> str:
    """key with its beginning replaced by the rule that fits. ours: 0 from our names, 1 from MONAI's. Raises ValueError."""
    for rule in rules:
        if key.startswith(rule[ours]):
            return rule[1 - ours] + key[len(rule[ours]) :]
    raise ValueError(f"{key} is not a tensor of Swin UNETR")


def to_monai(weights: dict[str, Tensor], window: Triple) -> dict[str, Tensor]:
    """Our Swin UNETR's state dict -> one that MONAI's SwinUNETR (not its version 2) loads strictly.

    window: of all stages, which MONAI wants to be one. Raises ValueError for a foreign tensor.
    """
    converted, table = {}, BiasTable(window)
    index = table.pairs(table.line(box_positions(window, torch.device("cpu")), window))
    for key, value in weights.items():
        if not (match := OURS.fullmatch(key)):
            converted[rename(key, PARTS, 0)] = value
        elif match[4]:
            converted[f"swinViT.layers{int(match[4]) + 1}.0.downsample.{match[5]}"] = value
        else:
            place = f"swinViT.layers{int(match[1]) + 1}.0.{match[2]}."
            converted[place + rename(match[3], BLOCK, 0)] = value
            converted[place + INDEX] = index
    return converted


def from_monai(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of MONAI's SwinUNETR -> ours, loads strictly. Raises ValueError for a foreign tensor."""
    converted = {}
    for key, value in weights.items():
        if key.endswith(INDEX):
            continue
        if not (match := MONAIS.fullmatch(key)):
            converted[rename(key, PARTS, 1)] = value
        elif match[4]:
            converted[f"encoder.merges.{int(match[1]) - 1}.{match[4]}"] = value
        else:
            converted[
                f"encoder.stages.{int(match[1]) - 1}.{match[2]}.{rename(match[3], BLOCK, 1)}"
            ] = value
    return converted
