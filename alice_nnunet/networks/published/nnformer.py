"""Convert state dicts between our nnFormer and its authors', every tensor.

The authors' names are those of nnformer/network_architecture/nnFormer_synapse.py in
282857341/nnFormer. Weights from there need encoders with bug_compatible.
"""

from torch import Tensor

from alice_nnunet.model.encoders.bias_table import BiasTable
from alice_nnunet.networks.published.names import inverse, rename

# Beginnings of names, ours and the authors': of the patch embedding, and of what follows the name
# of a block
EMBEDDING_PARTS = (
    ("convolutions.0.", "proj1.conv1."),
    ("convolutions.1.", "proj1.conv2."),
    ("convolutions.2.", "proj2.conv1."),
    ("convolutions.3.", "proj2.conv2."),
    ("norms.0.", "proj1.norm1."),
    ("norms.1.", "proj1.norm2."),
    ("norms.2.", "proj2.norm1."),
    ("norms.3.", "norm."),
)
BLOCK_PARTS = (
    ("norm1.", "norm1."),
    ("norm2.", "norm2."),
    ("attention.bias", "attn.relative_position_bias_table"),
    ("attention.qkv.", "attn.qkv."),
    ("attention.kv.", "attn.kv."),
    ("attention.out.", "attn.proj."),
    ("mlp.0.", "mlp.fc1."),
    ("mlp.2.", "mlp.fc2."),
)
TABLE = "attn.relative_position_bias_table"
INDEX = "attn.relative_position_index"  # the authors keep it in the state dict, we compute it


def naming_rules(depths: tuple) -> list[tuple[str, str]]:
    """Beginnings of all names, ours and the authors'.

    The authors count the decoder's stages from the coarsest, we count from the finest.

    Args:
        depths: number of blocks of each stage of the encoder.
    """
    last = len(depths) - 1
    rules = nested("encoder.patch_embed.", "model_down.patch_embed.", EMBEDDING_PARTS)

    for stage, depth in enumerate(depths):
        ours = f"encoder.stages.{stage}.blocks"
        theirs = f"model_down.layers.{stage}.blocks"
        for block in range(depth):
            rules += nested(f"{ours}.{block}.", f"{theirs}.{block}.", BLOCK_PARTS)

    for stage, depth in enumerate(depths[:-1]):
        layer = f"decoder.layers.{last - 1 - stage}"
        rules += nested(f"stages.{stage}.cross.", f"{layer}.blocks.0.", BLOCK_PARTS)
        for block in range(depth - 1):
            ours = f"stages.{stage}.blocks.{block}."
            rules += nested(ours, f"{layer}.blocks.{block + 1}.", BLOCK_PARTS)

        rules += [
            (f"encoder.merges.{stage}.", f"model_down.layers.{stage}.downsample."),
            (f"norms.{stage}.", f"model_down.norm{stage}."),
            (f"expands.{stage}.", f"{layer}.Upsample."),
            (f"heads.{stage}.", f"final.{stage}.up."),
        ]

    rules.append(("encoder.norm.", f"model_down.norm{last}."))
    return rules


def nested(ours: str, theirs: str, parts: tuple) -> list[tuple[str, str]]:
    """Rules for the parts of a module that is called `ours` here and `theirs` there."""
    return [(ours + our_part, theirs + their_part) for our_part, their_part in parts]


def from_published(weights: dict[str, Tensor], depths: tuple) -> dict[str, Tensor]:
    """Convert the authors' state dict to one that our nnFormer loads strictly.

    Args:
        weights: the authors' state dict.
        depths: number of blocks of each stage of the encoder.

    Raises:
        ValueError: a tensor is not of nnFormer.
    """
    rules = inverse(naming_rules(depths))

    converted = {}
    for name, value in weights.items():
        if not name.endswith(INDEX):
            converted[rename(name, rules, "nnFormer")] = value
    return converted


def to_published(
    weights: dict[str, Tensor], depths: tuple, windows: tuple, indexing: str = "nnformer"
) -> dict[str, Tensor]:
    """Convert our nnFormer's state dict to the authors'.

    Args:
        weights: our state dict.
        depths: number of blocks of each stage of the encoder.
        windows: window (z, y, x) of each stage of the encoder, in tokens.
        indexing: how the weights read their bias tables, see BiasTable.

    Raises:
        ValueError: a tensor is not of nnFormer.
    """
    rules = naming_rules(depths)

    converted = {}
    for name, value in weights.items():
        new_name = rename(name, rules, "nnFormer")
        converted[new_name] = value

        if new_name.endswith(TABLE):
            layer = int(new_name.split(".")[2])
            in_encoder = new_name.startswith("model_down")
            stage = layer if in_encoder else len(depths) - 2 - layer
            table = BiasTable(tuple(windows[stage]), indexing)
            converted[new_name.replace(TABLE, INDEX)] = table.full_window_rows()
    return converted
