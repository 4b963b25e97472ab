"""State dicts of our nnFormer and of its authors', one turned into the other, every tensor.

Names are those of nnformer/network_architecture/nnFormer_synapse.py in 282857341/nnFormer. Weights from there want
bug_compatible encoders.
"""

import torch
from torch import Tensor

from alice_nnunet.model.encoders.bias_table import BiasTable
from alice_nnunet.model.encoders.windows import box_positions

# (our name, the authors'); what follows is taken over
BLOCK = (
    ("norm1.", "norm1."),
    ("norm2.", "norm2."),
    ("attention.bias", "attn.relative_position_bias_table"),
    ("attention.qkv.", "attn.qkv."),
    ("attention.kv.", "attn.kv."),
    ("attention.out.", "attn.proj."),
    ("mlp.0.", "mlp.fc1."),
    ("mlp.2.", "mlp.fc2."),
)
EMBED = tuple(
    (f"encoder.patch_embed.{ours}.", f"model_down.patch_embed.{theirs}.")
    for ours, theirs in (
        ("convolutions.0", "proj1.conv1"),
        ("convolutions.1", "proj1.conv2"),
        ("convolutions.2", "proj2.conv1"),
        ("convolutions.3", "proj2.conv2"),
        ("norms.0", "proj1.norm1"),
        ("norms.1", "proj1.norm2"),
        ("norms.2", "proj2.norm1"),
        ("norms.3", "norm"),
    )
)
INDEX = "attn.relative_position_index"  # the authors keep it, we compute it


def parts(depths: tuple) -> list[tuple[str, str]]:
    """Beginnings of names, ours and theirs, of everything. depths: blocks of each stage of the encoder.

    The authors count the decoder's stages from the coarsest, we count from the finest.
    """
    names, last = list(EMBED), len(depths) - 1
    for i, depth in enumerate(depths):
        names += blocks(
            f"encoder.stages.{i}.blocks.", f"model_down.layers.{i}.blocks.", range(depth), 0
        )
    for i, depth in enumerate(depths[:-1]):
        theirs = f"decoder.layers.{last - 1 - i}."
        names += blocks(f"stages.{i}.blocks.", f"{theirs}blocks.", range(depth - 1), 1)
        names += [
            (f"stages.{i}.cross.{ours}", f"{theirs}blocks.0.{their}") for ours, their in BLOCK
        ]
        names += [
            (f"encoder.merges.{i}.", f"model_down.layers.{i}.downsample."),
            (f"norms.{i}.", f"model_down.norm{i}."),
            (f"expands.{i}.", f"{theirs}Upsample."),
            (f"heads.{i}.", f"final.{i}.up."),
        ]
    return [*names, ("encoder.norm.", f"model_down.norm{last}.")]


def blocks(ours: str, theirs: str, numbers: range, first: int) -> list[tuple[str, str]]:
    """Beginnings of names of blocks, ours counted from 0, theirs from first."""
    return [
        (f"{ours}{n}.{our}", f"{theirs}{n + first}.{their}")
        for n in numbers
        for our, their in BLOCK
    ]


def rename(key: str, rules: list, side: int) -> str:
    """key with its beginning replaced by the rule that fits. side: 0 from our names, 1 from theirs. Raises ValueError."""
    for rule in rules:
        if key.startswith(rule[side]):
            return rule[1 - side] + key[len(rule[side]) :]
    raise ValueError(f"{key} is not a tensor of nnFormer")


def from_published(weights: dict[str, Tensor], depths: tuple) -> dict[str, Tensor]:
    """The authors' state dict -> ours, loads strictly. depths: of the encoder's stages. Raises ValueError for a foreign
    tensor."""
    rules = parts(depths)
    return {
        rename(key, rules, 1): value for key, value in weights.items() if not key.endswith(INDEX)
    }


def to_published(weights: dict[str, Tensor], depths: tuple, windows: tuple) -> dict[str, Tensor]:
    """Our state dict -> the authors'. depths, windows: of the encoder's stages. Raises ValueError for a foreign tensor."""
    rules, converted = parts(depths), {}
    for key, value in weights.items():
        name = rename(key, rules, 0)
        converted[name] = value
        if name.endswith("relative_position_bias_table"):
            stage = int(name.split(".")[2])
            window = tuple(
                windows[stage]
                if name.startswith("model_down")
                else windows[len(depths) - 2 - stage]
            )
            table = BiasTable(window, "nnformer")
            places = box_positions(window, torch.device("cpu"))
            converted[name.replace("attn.relative_position_bias_table", INDEX)] = table.pairs(
                table.line(places, window)
            )
    return converted
