"""Swin's transformer block on tokens packed by their windows (Liu et al. 2021).

Swin and nnFormer share it. Shapes: R rows (tokens of a batch), S slots, E width, G groups of T
slots; see windows.py.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alice_nnunet.model.encoders.bias_table import BiasTable
from alice_nnunet.model.encoders.windows import GroupBatch, Packing
from alice_nnunet.model.transformer import Recomputable, check_heads, mlp

# Scores that a CPU computes at a time: 4 MB stay in its cache from the product to the softmax and
# back.
CPU_SCORES = 2**20
# Groups that CUDA's kernels of attention take in one call: batch and heads are the axes y and z of
# the grid of thread blocks (pytorch/pytorch, issues 142228 and 146704).
CUDA_GROUPS = 65_535
# Copies of a bias table that a GPU sums gradients in: additions to one number wait for each other.
CUDA_COPIES = 64


class Rearrange(torch.autograd.Function):
    """Rows in another order, x[forth], with a gradient that only looks up: gradient[back].

    This is right because each row's gradient comes from one slot; spare slots get none.
    """

    @staticmethod
    def forward(ctx, x: Tensor, forth: Tensor, back: Tensor, spare: Tensor | None) -> Tensor:
        """Reorder rows to slots or slots to rows.

        Args:
            ctx: autograd's context.
            x: (R, E), or (S, E) for the way back.
            forth: index of x for each row of the result.
            back: index of the result for each row of x.
            spare: (S,) bool, True for rows of x that get no gradient. None if there are none.
        """
        ctx.save_for_backward(back, spare)
        return x.index_select(0, forth)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple:
        back, spare = ctx.saved_tensors
        grad = grad.index_select(0, back)
        if spare is not None:
            grad.masked_fill_(spare.unsqueeze(-1), 0)
        return grad, None, None, None


class BiasOfPairs(torch.autograd.Function):
    """The bias of each pair of slots, table[:, rows], with a gradient that is summed in float32.

    Many pairs share a row. In bf16 their sum would be off by 7 % at 16,000 pairs of a row, and
    there are 147,000 at the paper's size.
    """

    @staticmethod
    def forward(ctx, table: Tensor, rows: Tensor, dtype: torch.dtype) -> Tensor:
        """Look up biases.

        Args:
            ctx: autograd's context.
            table: (heads, rows + 1), float32 or float64.
            rows: (G or 1, T, T), rows of the table.
            dtype: of the result.

        Returns:
            (G or 1, heads, T, T).
        """
        ctx.save_for_backward(rows)
        ctx.table_shape = table.shape
        ctx.table_dtype = table.dtype
        index = rows.view(1, -1).long().expand(len(table), -1)
        bias = table.to(dtype).gather(1, index)
        return bias.view(len(table), *rows.shape).transpose(0, 1)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple:
        (rows,) = ctx.saved_tensors
        heads, length = ctx.table_shape
        copies = copies_of_table(grad.device)

        index = rows.long()
        if copies > 1:
            index = spread_over_copies(index, copies, length)
        index = index.view(1, -1).expand(heads, -1)
        grad = grad.transpose(0, 1).reshape(heads, -1).to(ctx.table_dtype)
        sums = grad.new_zeros(heads, copies * length).scatter_add_(1, index, grad)
        return sums.view(heads, copies, length).sum(1), None, None


def copies_of_table(device: torch.device) -> int:
    """Copies of a bias table that its gradient is summed in."""
    return CUDA_COPIES if device.type == "cuda" else 1


def spread_over_copies(rows: Tensor, copies: int, length: int) -> Tensor:
    """Where pairs add their gradients, so that few of them wait for each other.

    Neighboring pairs add to different copies. Pairs that must not attend would all share the last
    row, 50 million in a block at the paper's size. Their gradients are 0, and go to any row.

    Args:
        rows: (G or 1, T, T), rows of the table for each pair of slots.
        copies: of the table.
        length: rows of a copy; the last is that of pairs that must not attend.

    Returns:
        (G or 1, T, T), rows of all copies, one copy after the other.
    """
    slots = rows.shape[-1]
    pairs = torch.arange(slots * slots, device=rows.device).view(slots, slots)
    attending = torch.where(rows == length - 1, pairs % length, rows)
    copy = torch.arange(slots, device=rows.device) % copies
    return attending + copy * length


def groups_at_a_time(device: torch.device, heads: int, slots: int) -> int:
    """Groups of so many slots that one call of attention should take."""
    if device.type == "cpu":
        return max(1, CPU_SCORES // (heads * slots**2))
    return CUDA_GROUPS


def attention(query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
    """F.scaled_dot_product_attention, (G, heads, T, E / heads) each, a little faster on a CPU.

    On a CPU torch computes these steps too, but looks at every score for queries without keys.
    Here every query has a key to attend to.
    """
    if query.device.type != "cpu":
        return F.scaled_dot_product_attention(query, key, value, bias)
    scores = (query * query.shape[-1] ** -0.5 @ key.mT).add_(bias)
    return scores.softmax(-1) @ value


class WindowAttention(nn.Module):
    """Multi-head attention within windows, with a bias for the offset between two tokens.

    Subclasses say where queries, keys and values come from.

    Args:
        width: E.
        heads: attention heads.
        table: bias table of the stage's windows.
    """

    def __init__(self, width: int, heads: int, table: BiasTable):
        super().__init__()
        check_heads(width, heads)
        self.heads = heads
        self.bias = nn.Parameter(torch.empty(table.rows, heads))
        self.out = nn.Linear(width, width)
        nn.init.trunc_normal_(self.bias, std=0.02)

    def mix(self, qkv: Tensor, packing: Packing) -> Tensor:
        """Attention for all tokens.

        Args:
            qkv: (R + padding, 3E), queries, keys and values side by side.
            packing: of these tokens.

        Returns:
            (R, E).
        """
        slots = Rearrange.apply(qkv, packing.row_of_slot, packing.slot_of_row, None)  # (S, 3E)

        # One more row for pairs that must not attend.
        forbidden = self.bias.new_full((1, self.heads), -torch.inf)
        table = torch.cat([self.bias, forbidden]).t().contiguous()

        parts = slots.split([batch.groups * batch.slots for batch in packing.batches])
        mixed = in_one(
            [self.attend(part, table, batch) for part, batch in zip(parts, packing.batches)]
        )

        rows = Rearrange.apply(mixed, packing.slot_of_row, packing.row_of_slot, packing.spare)
        return self.out(rows[: len(rows) - packing.padding])

    def attend(self, slots: Tensor, table: Tensor, batch: GroupBatch) -> Tensor:
        """Attention of one batch of groups, as many at a time as the device takes well.

        Args:
            slots: (G * T, 3E).
            table: (heads, rows + 1) biases.
            batch: the groups.

        Returns:
            (G * T, E).
        """
        at_a_time = groups_at_a_time(slots.device, self.heads, batch.slots)

        # There is one bias for all groups, or one for each.
        biases = [
            BiasOfPairs.apply(table, rows, slots.dtype) for rows in batch.bias_rows.split(at_a_time)
        ]
        qkv = slots.view(batch.groups, batch.slots, 3, self.heads, -1)
        qkv = qkv.permute(2, 0, 3, 1, 4)  # (3, G, heads, T, E / heads)

        mixed = []
        for index, (query, key, value) in enumerate(qkv.split(at_a_time, 1)):
            mixed.append(attention(query, key, value, biases[index % len(biases)]))
        return in_one(mixed).transpose(1, 2).reshape(len(slots), -1)


class SelfAttention(WindowAttention):
    """Queries, keys and values come from the same tokens, (R, E) -> (R, E)."""

    def __init__(self, width: int, heads: int, table: BiasTable):
        super().__init__(width, heads, table)
        self.qkv = nn.Linear(width, 3 * width)

    def forward(self, x: Tensor, packing: Packing) -> Tensor:
        return self.mix(self.qkv(with_padding(x, packing)), packing)


class CrossAttention(WindowAttention):
    """Tokens query the skip connection (nnFormer's decoder), (R, E) and (R, E) -> (R, E).

    Queries are x itself, without a linear layer. Keys and values come from skip.
    """

    def __init__(self, width: int, heads: int, table: BiasTable):
        super().__init__(width, heads, table)
        self.kv = nn.Linear(width, 2 * width)

    def forward(self, x: Tensor, skip: Tensor, packing: Packing) -> Tensor:
        key_value = self.kv(with_padding(skip, packing))
        query = with_padding(x, packing).to(key_value.dtype)
        return self.mix(torch.cat([query, key_value], -1), packing)


def in_one(parts: list[Tensor]) -> Tensor:
    """Parts one after the other along the first axis. A single part is not copied."""
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def with_padding(x: Tensor, packing: Packing) -> Tensor:
    """Append the packing's rows of zeros, (R, E) -> (R + padding, E)."""
    return F.pad(x, (0, 0, 0, packing.padding)) if packing.padding else x


class WindowBlock(Recomputable):
    """Pre-norm transformer block with attention in windows, (R, E) -> (R, E)."""

    def __init__(self, width: int, heads: int, table: BiasTable):
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.attention = SelfAttention(width, heads, table)
        self.mlp = mlp(width)

    def forward(self, x: Tensor, packing: Packing) -> Tensor:
        x = x + self.attention(self.norm1(x), packing)
        return x + self.mlp(self.norm2(x))


class CrossBlock(nn.Module):
    """Transformer block in which x queries the skip connection (nnFormer's decoder).

    One layer norm serves both.
    """

    def __init__(self, width: int, heads: int, table: BiasTable):
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.attention = CrossAttention(width, heads, table)
        self.mlp = mlp(width)

    def forward(self, x: Tensor, skip: Tensor, packing: Packing) -> Tensor:
        """Both are (R, E), and so is the result."""
        x = x + skip + self.attention(self.norm1(x), self.norm1(skip), packing)
        return x + self.mlp(self.norm2(x))
