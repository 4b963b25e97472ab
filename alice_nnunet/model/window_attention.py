"""Swin's transformer block on tokens packed by their windows (Liu et al. 2021); used by Swin and nnFormer alike.

R rows (tokens of a batch), E width, G groups of T slots: see windows.py.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alice_nnunet.geometry import Triple
from alice_nnunet.model.windows import Packing, table_rows


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
        return (grad if spare is None else grad.masked_fill_(spare.unsqueeze(-1), 0)), None, None, None


class WindowAttention(nn.Module):
    """Multi-head self-attention within windows, with a bias for the offset between two tokens.

    window: largest window, it fixes the bias table. A smaller one uses the rows of the offsets that occur in it.
    """

    def __init__(self, width: int, heads: int, window: Triple):
        super().__init__()
        if width % heads:
            raise ValueError(f"width must be a multiple of heads, got width {width} and {heads} heads")
        self.heads = heads
        self.bias = nn.Parameter(torch.empty(table_rows(window), heads))
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        nn.init.trunc_normal_(self.bias, std=0.02)

    def forward(self, x: Tensor, packing: Packing) -> Tensor:
        """x: (R, E). Returns (R, E)."""
        slots = Rearrange.apply(self.qkv(x), packing.order, packing.place, None)                    # (S, 3E)
        forbidden = self.bias.new_full((1, self.heads), -torch.inf)
        table = torch.cat([self.bias, forbidden]).to(slots.dtype).t().contiguous()                  # (heads, rows + 1)
        parts = slots.split([batch.groups * batch.slots for batch in packing.batches])
        mixed = torch.cat([self.attend(part, table, batch) for part, batch in zip(parts, packing.batches)])
        return self.out(Rearrange.apply(mixed, packing.place, packing.order, packing.spare))

    def attend(self, slots: Tensor, table: Tensor, batch) -> Tensor:
        """Attention of one batch of groups. slots: (G * T, 3E). Returns (G * T, E)."""
        shape = (batch.groups, batch.slots, 3, self.heads, -1)
        query, key, value = slots.view(shape).permute(2, 0, 3, 1, 4)                                # (G, heads, T, E / heads)
        bias = table.gather(1, batch.pairs.view(1, -1).expand(self.heads, -1))
        bias = bias.view(self.heads, *batch.pairs.shape).transpose(0, 1)                            # (G or 1, heads, T, T)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        return mixed.transpose(1, 2).reshape(len(slots), -1)


class WindowBlock(nn.Module):
    """Pre-norm transformer block with attention in windows, (R, E) -> (R, E)."""

    def __init__(self, width: int, heads: int, window: Triple, mlp_ratio: float = 4.0):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = WindowAttention(width, heads, window)
        self.mlp = nn.Sequential(nn.Linear(width, int(width * mlp_ratio)), nn.GELU(),
                                 nn.Linear(int(width * mlp_ratio), width))

    def forward(self, x: Tensor, packing: Packing) -> Tensor:
        x = x + self.attention(self.norm1(x), packing)
        return x + self.mlp(self.norm2(x))
