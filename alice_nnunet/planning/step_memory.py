"""Estimate the memory of a training step by running it on the meta device.

There tensors have sizes and no content. Forward, loss, backward and optimizer run as they would:
every storage is counted from its creation until it is freed, and the highest sum is the answer. As
on a GPU, what CUDA's autocast computes in half precision has half the size, and attention is the
fused one, which stores no matrix of all pairs. Not counted, because nothing here knows them: the
CUDA context, cuDNN's workspaces and gaps between tensors.
"""

from collections.abc import Sequence
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from alice_nnunet.finetuning.block import AliceBlock
from alice_nnunet.finetuning.network import build_network
from alice_nnunet.finetuning.optimizers import build_optimizer, encoder_depths, parameter_groups
from alice_nnunet.memory import Ledger
from alice_nnunet.model.encoders.windows import pack_grid

# Autocast Op Reference in PyTorch's documentation, as far as our networks and losses call it
HALF = (F.linear, F.conv3d, F.conv_transpose3d, torch.matmul, F.scaled_dot_product_attention)
SINGLE = (F.layer_norm, torch.layer_norm, F.softmax, F.cross_entropy)


class CudaSizes(TorchFunctionMode):
    """Give tensors on the meta device the sizes they have under CUDA's autocast and attention."""

    def __torch_function__(self, function, types, arguments=(), keywords=None):
        keywords = keywords or {}

        if function in HALF:
            arguments, keywords = cast((arguments, keywords), torch.half)
        elif function in SINGLE:
            arguments, keywords = cast((arguments, keywords), torch.float)

        if function is F.scaled_dot_product_attention:
            return fused_attention(*arguments, **keywords)
        return function(*arguments, **keywords)


def cast(tree: tuple, dtype: torch.dtype) -> tuple:
    """Convert all floating-point tensors in a tree of arguments."""

    def cast_leaf(leaf):
        if isinstance(leaf, Tensor) and leaf.is_floating_point():
            return leaf.to(dtype)
        return leaf

    return tree_map(cast_leaf, tree)


def fused_attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None
) -> Tensor:
    """F.scaled_dot_product_attention as CUDA's memory-efficient kernel does it.

    query, key, value and the result: (G, heads, T, E / heads).
    """
    if attn_mask is not None:
        attn_mask = attn_mask.expand(len(query), query.shape[1], query.shape[2], key.shape[2])
    return torch.ops.aten._scaled_dot_product_efficient_attention(
        query, key, value, attn_mask, True
    )[0]


def overlap_and_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """A loss with the tensors of nnU-Net's, cross-entropy and Dice.

    Args:
        logits: (B, classes, D, H, W).
        labels: (B, D, H, W).
    """
    probabilities = F.softmax(logits, 1)
    with torch.no_grad():
        truth = torch.zeros(logits.shape, dtype=torch.bool, device=logits.device)
        truth = truth.scatter_(1, labels.unsqueeze(1), 1)

    axes = (2, 3, 4)
    overlap = (probabilities * truth).sum(axes) / (probabilities.sum(axes) + truth.sum(axes))
    return F.cross_entropy(logits, labels) - overlap.mean()


def background_loss(logits: Tensor) -> Tensor:
    """The loss for labels that are all background. logits: (B, classes, D, H, W)."""
    shape = (len(logits), *logits.shape[2:])
    labels = torch.zeros(shape, dtype=torch.long, device=logits.device)
    return overlap_and_entropy(logits, labels)


def training_step(network: nn.Module, optimizer: torch.optim.Optimizer, image: Tensor) -> None:
    """One step with labels that are all background. image: (B, C, D, H, W)."""
    optimizer.zero_grad()

    outputs = network(image)
    if not isinstance(outputs, list):
        outputs = [outputs]

    loss, *others = [background_loss(logits) for logits in outputs]
    sum(others, start=loss).backward()
    optimizer.step()


def training_memory(
    block: AliceBlock,
    channels: int,
    classes: int,
    patch: Sequence[int],
    batch: int,
    autocast: bool = True,
) -> int:
    """Peak memory of a training step of a block's network with its recipe's optimizer.

    Args:
        block: of the plans.
        channels: of the image.
        classes: of the segmentation.
        patch: voxels (z, y, x).
        batch: patches.
        autocast: half precision as on CUDA; else all in fp32, as on a CPU.

    Returns:
        Bytes.
    """
    recipe = block.recipe
    with torch.device("meta"):
        network = build_network(block, channels, classes, deep_supervision=True)

    groups = parameter_groups(
        network.named_parameters(),
        encoder_depths(block.origin.arguments),
        recipe.layer_decay,
        recipe.frozen_epochs,
    )
    optimizer = build_optimizer(groups, recipe)

    pack_grid.cache_clear()  # packings that are kept belong to the step, whatever ran before
    ledger = Ledger()
    with ledger, CudaSizes() if autocast else nullcontext():
        ledger.count([*network.parameters(), *network.buffers()])
        for _ in range(2):  # the optimizer's own tensors exist from the second step on
            image = torch.empty((batch, channels, *patch), device="meta")
            training_step(network, optimizer, image)
    return ledger.peak
