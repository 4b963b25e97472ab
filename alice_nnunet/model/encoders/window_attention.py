"""Swin's transformer block on tokens packed by their windows (Liu et al. 2021); used by Swin and nnFormer alike.

R rows (tokens of a batch), E width, G groups of T slots: see windows.py.
"""

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alice_nnunet.model.encoders.bias_table import BiasTable
from alice_nnunet.model.transformer import Recomputable
from alice_nnunet.model.encoders.windows import Batch, Packing

CPU_SCORES = (
    2**20
)  # scores that a CPU holds at a time: 4 MB stay in its cache from the product to the softmax and back


class Rearrange(torch.autograd.Function):
    """Rows in another order, with a gradient that only looks up: every row has one slot that counts.

    forward: rows (R, E), order (S,), place (R,), spare (S,) or None -> (S, E), and the other way round.
    """

    @staticmethod
    def forward(ctx, x: Tensor, forth: Tensor, back: Tensor, spare: Tensor | None) -> Tensor:
        """spare: of the slots that x holds, if any; they get no gradient."""
        ctx.save_for_backward(back, spare)
        return x.index_select(0, forth)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple:
        back, spare = ctx.saved_tensors
        grad = grad.index_select(0, back)
        return (
            (grad if spare is None else grad.masked_fill_(spare.unsqueeze(-1), 0)),
            None,
            None,
            None,
        )


def attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """F.scaled_dot_product_attention, (G, heads, T, E / heads) each; every query has a key that it may attend to.

    On a CPU torch computes it in these steps too, but with a look for queries without keys at every score.
    """
    if q.device.type != "cpu":
        return F.scaled_dot_product_attention(q, k, v, bias)
    return (q * q.shape[-1] ** -0.5 @ k.mT).add_(bias).softmax(-1) @ v


class WindowAttention(nn.Module):
    """Multi-head attention within windows, with a bias for the offset between two tokens.

    Subclasses say where queries, keys and values come from. table: of the largest window.
    """

    def __init__(self, width: int, heads: int, table: BiasTable):
        super().__init__()
        if width % heads:
            raise ValueError(
                f"width must be a multiple of heads, got width {width} and {heads} heads"
            )
        self.heads = heads
        self.bias = nn.Parameter(torch.empty(table.rows, heads))
        self.out = nn.Linear(width, width)
        nn.init.trunc_normal_(self.bias, std=0.02)

    def mix(self, qkv: Tensor, packing: Packing) -> Tensor:
        """Queries, keys and values side by side, (R + padding, 3E), -> what the queries found, (R, E)."""
        slots = Rearrange.apply(qkv, packing.order, packing.place, None)  # (S, 3E)
        forbidden = self.bias.new_full((1, self.heads), -torch.inf)
        table = (
            torch.cat([self.bias, forbidden]).to(slots.dtype).t().contiguous()
        )  # (heads, rows + 1)
        parts = slots.split([batch.groups * batch.slots for batch in packing.batches])
        mixed = torch.cat(
            [self.attend(part, table, batch) for part, batch in zip(parts, packing.batches)]
        )
        rows = Rearrange.apply(mixed, packing.place, packing.order, packing.spare)
        return self.out(rows[: len(rows) - packing.padding])

    def attend(self, slots: Tensor, table: Tensor, batch: Batch) -> Tensor:
        """Attention of one batch of groups, on a CPU a few groups at a time. slots: (G * T, 3E). Returns (G * T, E)."""
        size = (
            max(1, CPU_SCORES // (self.heads * batch.slots**2))
            if slots.device.type == "cpu"
            else batch.groups
        )
        biases = itertools.cycle(
            [self.offsets(table, pairs) for pairs in batch.pairs.split(size)]
        )  # one for all, or one each
        qkv = slots.view(batch.groups, batch.slots, 3, self.heads, -1).permute(
            2, 0, 3, 1, 4
        )  # (3, G, heads, T, E / heads)
        mixed = [attention(*part, next(biases)) for part in qkv.split(size, 1)]
        return torch.cat(mixed).transpose(1, 2).reshape(len(slots), -1)

    def offsets(self, table: Tensor, pairs: Tensor) -> Tensor:
        """Biases for pairs of slots. table: (heads, rows + 1), pairs: (G or 1, T, T). Returns (G or 1, heads, T, T)."""
        bias = table.gather(1, pairs.view(1, -1).expand(self.heads, -1))
        return bias.view(self.heads, *pairs.shape).transpose(0, 1)


class SelfAttention(WindowAttention):
    """(R, E) -> (R, E)."""

    def __init__(self, width: int, heads: int, table: BiasTable):
        super().__init__(width, heads, table)
        self.qkv = nn.Linear(width, 3 * width)

    def forward(self, x: Tensor, packing: Packing) -> Tensor:
        return self.mix(self.qkv(with_padding(x, packing)), packing)


class CrossAttention(WindowAttention):
    """Queries are x as it is, keys and values come from skip (nnFormer's decoder). (R, E), (R, E) -> (R, E)."""

    def __init__(self, width: int, heads: int, table: BiasTable):
        super().__init__(width, heads, table)
        self.kv = nn.Linear(width, 2 * width)

    def forward(self, x: Tensor, skip: Tensor, packing: Packing) -> Tensor:
        keys_values = self.kv(with_padding(skip, packing))
        return self.mix(
            torch.cat([with_padding(x, packing).to(keys_values.dtype), keys_values], -1), packing
        )


def with_padding(x: Tensor, packing: Packing) -> Tensor:
    """(R, E) -> (R + padding, E)."""
    return F.pad(x, (0, 0, 0, packing.padding)) if packing.padding else x


class WindowBlock(Recomputable):
    """Pre-norm transformer block with attention in windows, (R, E) -> (R, E)."""

    def __init__(self, width: int, heads: int, table: BiasTable):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = SelfAttention(width, heads, table)
        self.mlp = mlp(width)

    def forward(self, x: Tensor, packing: Packing) -> Tensor:
        x = x + self.attention(self.norm1(x), packing)
        return x + self.mlp(self.norm2(x))


class CrossBlock(nn.Module):
    """Transformer block in which x asks the skip connection, both normalised by one norm (nnFormer's decoder)."""

    def __init__(self, width: int, heads: int, table: BiasTable):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = CrossAttention(width, heads, table)
        self.mlp = mlp(width)

    def forward(self, x: Tensor, skip: Tensor, packing: Packing) -> Tensor:
        """(R, E), (R, E) -> (R, E)."""
        x = x + skip + self.attention(self.norm1(x), self.norm1(skip), packing)
        return x + self.mlp(self.norm2(x))


def mlp(width: int) -> nn.Sequential:
    """The two linear layers of a transformer block."""
    return nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
