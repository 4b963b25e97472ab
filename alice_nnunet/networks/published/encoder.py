"""An encoder's tensors under the names of the published network, and how to load them there."""

from dataclasses import dataclass

from torch import Tensor

from alice_nnunet.model.encoders.vit import TOKEN
from alice_nnunet.networks.published import nnformer as nnformer_names
from alice_nnunet.networks.published import swin_unetr, unetr

OUTPUTS = 14  # of the networks in the examples: background and FLARE 2022's 13 organs


@dataclass(frozen=True)
class Published:
    """Weights for a published network.

    Attributes:
        file: name for the weights as safetensors.
        weights: the tensors under the published names.
        code: Python that loads them into the published network.
        remark: what to know about it.
    """

    file: str
    weights: dict[str, Tensor]
    code: str
    remark: str


def published_encoder(
    encoder: str, arguments: dict, weights: dict[str, Tensor]
) -> tuple[Published | None, str]:
    """The tensors of an encoder under published names.

    Args:
        encoder: its name, as in a checkpoint's config.
        arguments: of its constructor, as in a checkpoint's config.
        weights: of the encoder alone, our names.

    Returns:
        The tensors and an empty string, or None and the reason why there are none.
    """
    # The conversions are for networks, in which our encoder is called encoder.
    weights = {f"encoder.{name}": tensor for name, tensor in weights.items()}
    if encoder == "vit":
        return vit(arguments, weights), ""
    if encoder == "nnformer":
        return nnformer(arguments, weights), ""

    windows = {tuple(window) for window in arguments["windows"]}
    stages = len(arguments["depths"])
    if stages != 4 or len(windows) != 1 or arguments["embed_width"] % 12:
        return None, (
            "MONAI's SwinUNETR has four stages, one window and a width that is a multiple of 12; "
            f"this encoder has {stages} stages, windows {arguments['windows']} and width "
            f"{arguments['embed_width']}"
        )
    return swin(arguments, weights), ""


def vit(arguments: dict, weights: dict[str, Tensor]) -> Published:
    """For MONAI's UNETR, or for its ViT alone.

    The ViT of MONAI's UNETR always has 12 blocks and tokens of 16 x 16 x 16 voxels.
    """
    channels = arguments["in_channels"]
    size = tuple(arguments["crop_size"])
    width = arguments["width"]
    depth = arguments["depth"]
    token = tuple(arguments.get("token", TOKEN))
    common = (
        f"img_size={size}, hidden_size={width}, mlp_dim={4 * width}, num_heads={arguments['heads']}"
    )

    if depth == 12 and token == TOKEN:
        call = f"UNETR(in_channels={channels}, out_channels={OUTPUTS}, {common})"
        code = loading_code("UNETR", call, "vit.")
    else:
        call = f"ViT(in_channels={channels}, patch_size={token}, num_layers={depth}, {common})"
        code = (
            "from monai.networks.nets import ViT\n"
            "from safetensors.torch import load_file\n"
            "\n"
            f"network = {call}\n"
            'weights = load_file("monai.safetensors")\n'
            'network.load_state_dict({name.removeprefix("vit."): tensor '
            "for name, tensor in weights.items()}, strict=True)"
        )

    remark = (
        "MONAI's class takes images of one size only, and its position embeddings are for "
        f"{size} voxels (z, y, x). For another size, interpolate "
        "vit.patch_embedding.position_embeddings; alice-nnunet's own UNETR does this itself."
    )
    if token != TOKEN:
        remark = (
            f"**Tokens are {token} voxels (z, y, x), and those of MONAI's UNETR always 16 x 16 x "
            f"16.** The code above loads MONAI's ViT alone. {remark}"
        )
    elif depth < 12:
        remark = (
            f"**This encoder has {depth} blocks and MONAI's UNETR always has 12.** The code above "
            "loads MONAI's ViT alone. UNETR with strict=False would take these blocks and leave "
            f"the other {12 - depth} at random, without a word. {remark}"
        )
    return Published("monai.safetensors", unetr.to_monai(weights), code, remark)


def swin(arguments: dict, weights: dict[str, Tensor]) -> Published:
    """For MONAI's SwinUNETR."""
    window = tuple(arguments["windows"][0])
    call = (
        f"SwinUNETR(in_channels={arguments['in_channels']}, out_channels={OUTPUTS}, "
        f"feature_size={arguments['embed_width']}, depths={tuple(arguments['depths'])}, "
        f"num_heads={tuple(arguments['heads'])}, window_size={window})"
    )
    code = loading_code("SwinUNETR", call, "swinViT.")

    remark = (
        "MONAI attends to the padding of windows and misreads the position bias of windows that "
        "it shrinks. Where it does neither, its outputs equal those of this package; elsewhere "
        "they differ."
    )
    return Published("monai.safetensors", swin_unetr.to_monai(weights, window), code, remark)


def loading_code(name: str, call: str, prefix: str) -> str:
    """Code that loads the encoder's part of one of MONAI's networks.

    Args:
        name: class of the network.
        call: expression that builds it.
        prefix: beginning of the names of the encoder's tensors. The code asserts that none of them
            is missing.
    """
    # The decoder's tensors are missing, and no others.
    return (
        f"from monai.networks.nets import {name}\n"
        "from safetensors.torch import load_file\n"
        "\n"
        f"network = {call}\n"
        "missing, unexpected = network.load_state_dict("
        'load_file("monai.safetensors"), strict=False)\n'
        f'assert not unexpected and not any(key.startswith("{prefix}") for key in missing)'
        "  # the decoder's alone are missing"
    )


def nnformer(arguments: dict, weights: dict[str, Tensor]) -> Published:
    """For the authors' nnFormer.

    Their code reads biases by an index that is in the state dict. So the weights get the index
    with which they were trained: the authors' for bug_compatible encoders, otherwise one in which
    every offset has its own row.
    """
    depths = tuple(arguments["depths"])
    windows = [tuple(window) for window in arguments["windows"]]
    indexing = "nnformer" if arguments.get("bug_compatible") else "exact"
    published = nnformer_names.to_published(weights, depths, tuple(windows), indexing)

    code = (
        "from safetensors.torch import load_file\n"
        "\n"
        "# network: nnFormer of nnformer/network_architecture/nnFormer_synapse.py "
        "in 282857341/nnFormer\n"
        "missing, unexpected = network.load_state_dict("
        'load_file("nnformer.safetensors"), strict=False)\n'
        'decoder = ("decoder.", "final.", "model_down.norm")'
        "  # these norms are of what the decoder takes; "
        f"model_down.norm{len(windows) - 1} is here\n"
        "assert not unexpected and all(key.startswith(decoder) for key in missing)"
    )
    remark = (
        f"Settings: embedding_dim={arguments['embed_width']}, depths={depths}, "
        f"num_heads={tuple(arguments['heads'])}, "
        f"window_size={tuple(window[0] for window in windows)}, patch_size (2, 4, 4); the authors' "
        "network has four stages. The names are theirs; loading was not run with their code."
    )
    return Published("nnformer.safetensors", published, code, remark)
