"""How much memory a training step takes, by running it on the meta device, where tensors have sizes and no content.

Forward, loss, backward and optimizer run as they would: every storage is counted from its birth to its death, and the sum at
its highest is the answer. As on a GPU, what CUDA's autocast computes in half precision is half as large, and attention is the
fused one, which keeps no matrix of all pairs. Not counted, as nothing here knows them: the CUDA context, cuDNN's workspaces,
and gaps between tensors.
"""

import weakref
from collections.abc import Iterable
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from alice_nnunet.finetuning.network import build_network
from alice_nnunet.geometry import Triple
from alice_nnunet.finetuning.optimizers import build_optimizer, encoder_depths, parameter_groups
from alice_nnunet.finetuning.recipes import full_recipe

# Autocast Op Reference in PyTorch's documentation, as far as our networks and losses call it
HALF = (F.linear, F.conv3d, F.conv_transpose3d, torch.matmul, F.scaled_dot_product_attention)
SINGLE = (F.layer_norm, torch.layer_norm, F.softmax, F.cross_entropy)


class Ledger(TorchDispatchMode):
    """Bytes of the storages that operations inside make and that are still alive, now and at most."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self.known = weakref.WeakSet()

    def __torch_dispatch__(self, operation, types, arguments=(), keywords=None):
        result = operation(*arguments, **(keywords or {}))
        self.count(leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor))
        return result

    def count(self, tensors: Iterable[Tensor]) -> None:
        """Enter the storages of tensors that are not known yet."""
        for tensor in tensors:
            if (storage := tensor.untyped_storage()) not in self.known:
                self.known.add(storage)
                self.now += storage.nbytes()
                weakref.finalize(storage, self.forget, storage.nbytes())
        self.peak = max(self.peak, self.now)

    def forget(self, size: int) -> None:
        """Called when a storage of size bytes is gone."""
        self.now -= size


class CudaSizes(TorchFunctionMode):
    """What CUDA's autocast and fused attention do to the sizes of tensors, for tensors on the meta device."""

    def __torch_function__(self, function, types, arguments=(), keywords=None):
        keywords = keywords or {}
        if function in HALF or function in SINGLE:
            kind = torch.half if function in HALF else torch.float
            cast = lambda leaf: (
                leaf.to(kind) if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf
            )
            arguments, keywords = tree_map(cast, arguments), tree_map(cast, keywords)
        if function is F.scaled_dot_product_attention:
            return fused_attention(*arguments, **keywords)
        return function(*arguments, **keywords)


def fused_attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None
) -> Tensor:
    """F.scaled_dot_product_attention as CUDA's memory-efficient kernel does it. (G, heads, T, E / heads), all three."""
    if attn_mask is not None:
        attn_mask = attn_mask.expand(len(query), query.shape[1], query.shape[2], key.shape[2])
    return torch.ops.aten._scaled_dot_product_efficient_attention(
        query, key, value, attn_mask, True
    )[0]


def overlap_and_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """A loss with the tensors of nnU-Net's: cross-entropy and Dice. (B, classes, D, H, W), (B, D, H, W)."""
    probabilities = F.softmax(logits, 1)
    with torch.no_grad():
        truth = torch.zeros(logits.shape, dtype=torch.bool, device=logits.device).scatter_(
            1, labels.unsqueeze(1), 1
        )
    overlap = (probabilities * truth).sum((2, 3, 4)) / (
        probabilities.sum((2, 3, 4)) + truth.sum((2, 3, 4))
    )
    return F.cross_entropy(logits, labels) - overlap.mean()


def training_step(
    network: nn.Module, optimizer: torch.optim.Optimizer, image: Tensor, classes: int
) -> None:
    """One step with labels that are all background. image: (B, C, D, H, W)."""
    optimizer.zero_grad()
    outputs = network(image)
    outputs = outputs if isinstance(outputs, list) else [outputs]
    sum(
        overlap_and_entropy(
            logits,
            torch.zeros((len(image), *logits.shape[2:]), dtype=torch.long, device=image.device),
        )
        for logits in outputs
    ).backward()
    optimizer.step()


def training_memory(
    block: dict, channels: int, classes: int, patch: Triple, batch: int, autocast: bool = True
) -> int:
    """Bytes at the height of a training step of the network of an alice block, with its recipe's optimizer.

    channels, classes: of the image and of the segmentation. patch: voxels. autocast: as on CUDA, else all in fp32, as on a CPU.
    """
    recipe = full_recipe(block["recipe"])
    with torch.device("meta"):
        network = build_network(block, channels, classes, deep_supervision=True)
    groups = parameter_groups(
        network.named_parameters(),
        encoder_depths(block["encoder_arguments"]),
        recipe["layer_decay"],
        recipe["frozen_epochs"],
    )
    optimizer, ledger = build_optimizer(groups, recipe), Ledger()
    with ledger, CudaSizes() if autocast else nullcontext():
        ledger.count([*network.parameters(), *network.buffers()])
        for _ in range(2):  # the optimizer's own tensors exist from the second step on
            training_step(
                network, optimizer, torch.empty((batch, channels, *patch), device="meta"), classes
            )
    return ledger.peak
