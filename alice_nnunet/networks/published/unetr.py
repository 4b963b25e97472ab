"""State dicts of our UNETR and of MONAI's, one turned into the other, every tensor."""

import re

import torch
from torch import Tensor

# our name -> MONAI's; a rule applies to the beginning of a key
PARTS = {
    "stem.": "encoder1.",
    "rise2.": "encoder2.",
    "rise4.": "encoder3.",
    "rise8.": "encoder4.",
    "merge8.": "decoder5.",
    "merge4.": "decoder4.",
    "merge2.": "decoder3.",
    "merge1.": "decoder2.",
    "out.": "out.",
    "encoder.positions": "vit.patch_embedding.position_embeddings",
    "encoder.patch_embed.": "vit.patch_embedding.patch_embeddings.",
    "encoder.norm.": "vit.norm.",
    "encoder.blocks.": "vit.blocks.",
}
# the same for what follows encoder.blocks.N.
BLOCK = {
    "norm1.": "norm1.",
    "norm2.": "norm2.",
    "attention.qkv.": "attn.qkv.",
    "attention.out.": "attn.out_proj.",
    "mlp.0.": "mlp.linear1.",
    "mlp.2.": "mlp.linear2.",
}
OURS_BLOCK, MONAI_BLOCK = r"(encoder\.blocks\.\d+\.)(.+)", r"(vit\.blocks\.\d+\.)(.+)"
# MONAI's transformer block owns cross attention that its UNETR never calls: in 1.6.1 two tensors of norm_cross_attn
# in each of the 12 blocks, in earlier versions more. They are left out on the way to us, and made up (weight 1,
# bias 0, as MONAI starts them) on the way back.
UNUSED = re.compile(r"vit\.blocks\.\d+\.(norm_)?cross_attn\.")


def rename(key: str, rules: dict[str, str]) -> str:
    """key with its beginning replaced by the one rule that fits. Raises ValueError if none does."""
    for old, new in rules.items():
        if key.startswith(old):
            return new + key[len(old) :]
    raise ValueError(f"{key} is not a tensor of UNETR")


def to_monai(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our UNETR's state dict -> one that MONAI's UNETR loads strictly. Raises ValueError for a foreign tensor."""
    converted = {}
    for key, value in weights.items():
        if match := re.fullmatch(OURS_BLOCK, key):
            key = match[1] + rename(match[2], BLOCK)
        converted[rename(key, PARTS)] = value
    for key in [k for k in converted if re.fullmatch(r"vit\.blocks\.\d+\.norm1\.(weight|bias)", k)]:
        fill = torch.ones_like if key.endswith("weight") else torch.zeros_like
        converted[key.replace("norm1", "norm_cross_attn")] = fill(converted[key])
    return converted


def from_monai(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of MONAI's UNETR -> ours, loads strictly. Raises ValueError for a foreign tensor."""
    parts, block = ({new: old for old, new in rules.items()} for rules in (PARTS, BLOCK))
    converted = {}
    for key, value in weights.items():
        if UNUSED.match(key):
            continue
        if match := re.fullmatch(MONAI_BLOCK, key):
            key = match[1] + rename(match[2], block)
        converted[rename(key, parts)] = value
    return converted
