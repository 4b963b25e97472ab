"""An encoder's tensors by the names of the published network that it comes from, and how to load them there."""

from dataclasses import dataclass

import torch
from torch import Tensor

from alice_nnunet.model.encoders.bias_table import BiasTable
from alice_nnunet.model.encoders.windows import box_positions
from alice_nnunet.networks.published import nnformer as nnformer_names
from alice_nnunet.networks.published import swin_unetr, unetr

OUTPUTS = 14  # of the networks in the examples: background and FLARE 2022's 13 organs


@dataclass(frozen=True)
class Published:
    """file: name for weights as safetensors. code: Python that loads them. remark: what to know about it."""

    file: str
    weights: dict[str, Tensor]
    code: str
    remark: str


def published_encoder(
    encoder: str, arguments: dict, weights: dict[str, Tensor]
) -> tuple[Published | None, str]:
    """The tensors under published names, or None and the reason why there are none.

    encoder, arguments: as in a checkpoint's config. weights: of the encoder alone, our names.
    """
    inside = {f"encoder.{name}": tensor for name, tensor in weights.items()}
    if encoder == "vit":
        return vit(arguments, unetr.to_monai(inside)), ""
    if encoder == "nnformer":
        return nnformer(arguments, inside), ""
    windows = {tuple(window) for window in arguments["windows"]}
    if len(arguments["depths"]) != 4 or len(windows) != 1 or arguments["embed_width"] % 12:
        return None, (
            "MONAI's SwinUNETR has four stages, one window and a width that is a multiple of 12; this encoder has "
            f"{len(arguments['depths'])} stages, windows {arguments['windows']} and width {arguments['embed_width']}"
        )
    return swin(arguments, swin_unetr.to_monai(inside, *windows)), ""


def vit(arguments: dict, weights: dict[str, Tensor]) -> Published:
    """For MONAI's UNETR, whose ViT has 12 blocks, else for its ViT alone."""
    size, width = tuple(arguments["crop_size"]), arguments["width"]
    common = (
        f"img_size={size}, hidden_size={width}, mlp_dim={4 * width}, num_heads={arguments['heads']}"
    )
    if arguments["depth"] == 12:
        call = f"UNETR(in_channels={arguments['in_channels']}, out_channels={OUTPUTS}, {common})"
        return Published(
            "monai.safetensors", weights, partly("UNETR", call, "vit."), size_remark(size)
        )
    call = f"ViT(in_channels={arguments['in_channels']}, patch_size=16, num_layers={arguments['depth']}, {common})"
    code = (
        "from monai.networks.nets import ViT\nfrom safetensors.torch import load_file\n\n"
        f'network = {call}\nweights = load_file("monai.safetensors")\n'
        'network.load_state_dict({name.removeprefix("vit."): tensor for name, tensor in weights.items()}, strict=True)'
    )
    return Published("monai.safetensors", weights, code, size_remark(size))


def size_remark(size: tuple) -> str:
    return (
        f"MONAI's class takes images of one size only, and its position embeddings are for {size} voxels (z, y, x). For another "
        "size interpolate vit.patch_embedding.position_embeddings; alice-nnunet's own UNETR does that by itself."
    )


def swin(arguments: dict, weights: dict[str, Tensor]) -> Published:
    """For MONAI's SwinUNETR."""
    call = (
        f"SwinUNETR(in_channels={arguments['in_channels']}, out_channels={OUTPUTS}, feature_size={arguments['embed_width']}, "
        f"depths={tuple(arguments['depths'])}, num_heads={tuple(arguments['heads'])}, window_size={tuple(arguments['windows'][0])})"
    )
    remark = (
        "MONAI attends to the padding of windows and misreads the position bias of windows that it shrinks. Where it does neither, "
        "outputs are those of this package; elsewhere they differ."
    )
    return Published("monai.safetensors", weights, partly("SwinUNETR", call, "swinViT."), remark)


def partly(name: str, call: str, prefix: str) -> str:
    """Code that loads the encoder's part of MONAI's network called name, all of it."""
    return (
        f"from monai.networks.nets import {name}\nfrom safetensors.torch import load_file\n\n"
        f'network = {call}\nmissing, unexpected = network.load_state_dict(load_file("monai.safetensors"), strict=False)\n'
        f'assert not unexpected and not any(key.startswith("{prefix}") for key in missing)  # the decoder\'s alone are missing'
    )


def nnformer(arguments: dict, inside: dict[str, Tensor]) -> Published:
    """For the authors' nnFormer. inside: our names, with encoder. before them.

    What their code reads biases by is a tensor of the state dict. It goes with the weights as they were trained: the
    authors' for bug_compatible encoders, else one in which every offset has its own row.
    """
    windows = [tuple(window) for window in arguments["windows"]]
    weights = nnformer_names.to_published(inside, tuple(arguments["depths"]), tuple(windows))
    for name in weights if not arguments.get("bug_compatible") else ():
        if name.endswith(nnformer_names.INDEX):
            window = windows[int(name.split(".")[2])]
            table = BiasTable(window)
            weights[name] = table.pairs(
                table.line(box_positions(window, torch.device("cpu")), window)
            )
    code = (
        "from safetensors.torch import load_file\n\n"
        "# network: nnFormer of nnformer/network_architecture/nnFormer_synapse.py in 282857341/nnFormer\n"
        'missing, unexpected = network.load_state_dict(load_file("nnformer.safetensors"), strict=False)\n'
        'decoder = ("decoder.", "final.", "model_down.norm")  # these norms are of what the decoder takes; model_down.norm'
        f"{len(windows) - 1} is here\nassert not unexpected and all(key.startswith(decoder) for key in missing)"
    )
    remark = (
        f"Settings: embed_dim={arguments['embed_width']}, depths={tuple(arguments['depths'])}, num_heads={tuple(arguments['heads'])}, "
        f"window_size={tuple(w[0] for w in windows)}, patch_size (2, 4, 4); the authors' network has four stages. The names are theirs; "
        "loading was not run with their code."
    )
    return Published("nnformer.safetensors", weights, code, remark)
