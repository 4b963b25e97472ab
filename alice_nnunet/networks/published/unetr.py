"""Convert state dicts between our UNETR and MONAI's, every tensor."""

import re

import torch
from torch import Tensor

from alice_nnunet.networks.published.names import inverse, rename

# Beginnings of names, ours and MONAI's
PARTS = (
    ("stem.", "encoder1."),
    ("rise2.", "encoder2."),
    ("rise4.", "encoder3."),
    ("rise8.", "encoder4."),
    ("merge8.", "decoder5."),
    ("merge4.", "decoder4."),
    ("merge2.", "decoder3."),
    ("merge1.", "decoder2."),
    ("out.", "out."),
    ("encoder.positions", "vit.patch_embedding.position_embeddings"),
    ("encoder.patch_embed.", "vit.patch_embedding.patch_embeddings."),
    ("encoder.norm.", "vit.norm."),
)
# The same for what follows encoder.blocks.N. and vit.blocks.N.
BLOCK_PARTS = (
    ("norm1.", "norm1."),
    ("norm2.", "norm2."),
    ("attention.qkv.", "attn.qkv."),
    ("attention.out.", "attn.out_proj."),
    ("mlp.0.", "mlp.linear1."),
    ("mlp.2.", "mlp.linear2."),
)
OUR_BLOCK = re.compile(r"encoder\.blocks\.(\d+)\.(.+)")
MONAI_BLOCK = re.compile(r"vit\.blocks\.(\d+)\.(.+)")

# MONAI's transformer block owns cross attention that its UNETR never calls: in 1.6.1 two tensors of
# norm_cross_attn in each of the 12 blocks, in earlier versions more. They are left out on the way
# to us. On the way back they are made up as MONAI starts them: weight 1, bias 0.
UNUSED = re.compile(r"vit\.blocks\.\d+\.(norm_)?cross_attn\.")
MONAI_NORM1 = re.compile(r"vit\.blocks\.\d+\.norm1\.(weight|bias)")


def to_monai(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Convert our UNETR's state dict to one that MONAI's UNETR loads strictly.

    Raises:
        ValueError: a tensor is not of UNETR.
    """
    converted = {}
    for name, value in weights.items():
        block = OUR_BLOCK.fullmatch(name)
        if block:
            number, rest = block.groups()
            rest = rename(rest, BLOCK_PARTS, "UNETR", whole=name)
            converted[f"vit.blocks.{number}.{rest}"] = value
        else:
            converted[rename(name, PARTS, "UNETR")] = value

    for name in [name for name in converted if MONAI_NORM1.fullmatch(name)]:
        start = torch.ones_like if name.endswith("weight") else torch.zeros_like
        converted[name.replace("norm1", "norm_cross_attn")] = start(converted[name])
    return converted


def from_monai(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Convert the state dict of MONAI's UNETR to one that ours loads strictly.

    Raises:
        ValueError: a tensor is not of UNETR.
    """
    converted = {}
    for name, value in weights.items():
        if UNUSED.match(name):
            continue

        block = MONAI_BLOCK.fullmatch(name)
        if block:
            number, rest = block.groups()
            rest = rename(rest, inverse(BLOCK_PARTS), "UNETR", whole=name)
            converted[f"encoder.blocks.{number}.{rest}"] = value
        else:
            converted[rename(name, inverse(PARTS), "UNETR")] = value
    return converted
