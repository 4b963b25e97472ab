"""Transformer blocks, and what can be done to all blocks of a model: recompute and compile.

Shapes: B crops, N tokens, E width of a token.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class Recomputable(nn.Module):
    """A block that can save memory: with `recompute` it keeps only its inputs for backward.

    Backward then computes the block a second time, with the same values.
    """

    recompute = False

    def __call__(self, *inputs):
        if not (self.recompute and torch.is_grad_enabled()):
            return super().__call__(*inputs)

        # No block draws random numbers, so their state need not be saved.
        return checkpoint(super().__call__, *inputs, use_reentrant=False, preserve_rng_state=False)


class Attention(nn.Module):
    """Multi-head self-attention, (B, N, E) -> (B, N, E)."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        check_heads(width, heads)
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)  # UNETR's has no bias
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, n, e = x.shape
        qkv = self.qkv(x).reshape(b, n, 3, self.heads, e // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # (B, heads, N, E / heads) each

        mixed = F.scaled_dot_product_attention(query, key, value)
        return self.out(mixed.transpose(1, 2).reshape(b, n, e))


class Block(Recomputable):
    """Pre-norm transformer block, (B, N, E) -> (B, N, E).

    Args:
        width: E.
        heads: of the attention.
        norm: makes a norm of features (B, N, E) from their width.
    """

    def __init__(self, width: int, heads: int, norm: Callable[[int], nn.Module] = nn.LayerNorm):
        super().__init__()
        self.norm1 = norm(width)
        self.norm2 = norm(width)
        self.attention = Attention(width, heads)
        self.mlp = mlp(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


def mlp(width: int) -> nn.Sequential:
    """The two linear layers of a transformer block."""
    return nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))


def check_heads(width: int, heads: int) -> None:
    """Raise ValueError if the width cannot be divided among the heads."""
    if width % heads:
        raise ValueError(f"width must be a multiple of heads, got width {width} and {heads} heads")


def recompute_blocks(model: nn.Module) -> None:
    """Make every block in `model` recompute: less memory, more time, the same gradients."""
    for module in model.modules():
        if isinstance(module, Recomputable):
            module.recompute = True


def compile_blocks(model: nn.Module, kind: type[nn.Module], backend: str = "inductor") -> None:
    """Compile every block of class `kind` in `model`, in place.

    The names of the weights stay. Blocks of one shape share the compiled code.
    """
    for module in model.modules():
        if isinstance(module, kind):
            module.compile(backend=backend, dynamic=False)
