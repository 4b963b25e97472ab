"""An oracle: slow, obvious windowed transformers over all tokens of a crop.

Hidden tokens are taken out of every softmax.
"""

import itertools

import torch
import torch.nn.functional as F

# Neighbours (z, y, x) that Swin merges, in MONAI's order
MERGED_CORNERS = (
    (0, 0, 0),
    (1, 0, 0),
    (0, 1, 0),
    (0, 0, 1),
    (1, 1, 0),
    (1, 0, 1),
    (0, 1, 1),
    (1, 1, 1),
)


def same_window(length: int, window: int, shifted: bool) -> torch.Tensor:
    """Which tokens of an axis share a window, (length, length).

    By Swin's own recipe: roll, cut, and keep apart what the roll brought together.
    """
    window = min(window, length)
    shift = window // 2 if shifted and length > window else 0
    padded = -(-length // window) * window
    labels = []
    for token in range(length):
        rolled = (token - shift) % padded
        labels.append((rolled // window, rolled >= padded - shift if shift else False))
    return torch.tensor([[a == b for b in labels] for a in labels])


def dense_attention(attention, qkv, hidden, window, shifted):
    """Attention in windows over a grid.

    Args:
        attention: the layer.
        qkv: (B, D, H, W, 3E).
        hidden: (B, D, H, W) bool.
        window: size of the windows (z, y, x).
        shifted: whether they are shifted.

    Returns:
        (B, D, H, W, E).
    """
    b, d, h, w = qkv.shape[:4]
    e = qkv.shape[4] // 3
    n = d * h * w
    grid = (d, h, w)
    heads = attention.heads

    # (N, N): which tokens are in one window
    axes = [same_window(length, size, shifted) for length, size in zip(grid, window)]
    together = torch.einsum("ij,kl,mn->ikmjln", *(a.double() for a in axes)).reshape(n, n).bool()

    # (heads, N, N): the bias of their offset
    coordinates = torch.tensor(list(itertools.product(*map(range, grid))))
    offset = coordinates[:, None] - coordinates[None]
    numbers = torch.arange((2 * window[0] - 1) * (2 * window[1] - 1) * (2 * window[2] - 1)).view(
        [2 * s - 1 for s in window]
    )
    middle = [s - 1 for s in window]  # where the offset 0 is
    place = [(offset[..., axis] + middle[axis]).clamp(0, 2 * middle[axis]) for axis in range(3)]
    bias = attention.bias[numbers[place[0], place[1], place[2]]].permute(2, 0, 1)  # (heads, N, N)

    query, key, value = qkv.reshape(b, n, 3, heads, e // heads).permute(2, 0, 3, 1, 4)
    scores = query @ key.transpose(-1, -2) / (e // heads) ** 0.5 + bias
    forbidden = ~together[None, None] | hidden.view(b, 1, 1, n)
    # Not -inf: a hidden token may have nothing to attend to. Nothing looks at it.
    scores = scores.masked_fill(forbidden, -1e30)
    mixed = (scores.softmax(-1) @ value).transpose(1, 2).reshape(b, d, h, w, e)
    return attention.out(mixed)


def dense_block(block, x, hidden, window, shifted):
    """A transformer block over a grid, x (B, D, H, W, E) and hidden (B, D, H, W) -> x's shape."""
    qkv = block.attention.qkv(block.norm1(x))
    x = x + dense_attention(block.attention, qkv, hidden, window, shifted)
    return x + block.mlp(block.norm2(x))


def dense_stage(stage, x, hidden):
    for index, block in enumerate(stage.blocks):
        x = dense_block(block, x, hidden, stage.table.window, index % 2 == 1)
    return x


def hidden_grid(masked: torch.Tensor, units, tokens) -> torch.Tensor:
    """(B, N) units -> (B, D, H, W) tokens, where a unit is tokens along each axis."""
    grid = masked.view(-1, *units)
    for axis, count in enumerate(tokens, 1):
        grid = grid.repeat_interleave(count, axis)
    return grid


def dense_swin(encoder, crop, masked):
    """What Swin gives for all units of a crop if the masked ones, (B, N), were not there.

    Returns (B, N, E).
    """
    units = [size // unit for size, unit in zip(crop.shape[2:], encoder.unit)]
    x = encoder.patch_embed(crop).permute(0, 2, 3, 4, 1)

    for stage, merge in zip(encoder.stages, encoder.merges):
        tokens = [n // u for n, u in zip(x.shape[1:4], units)]
        x = dense_stage(stage, x, hidden_grid(masked, units, tokens))
        eight = torch.cat([x[:, z::2, y::2, w::2] for z, y, w in MERGED_CORNERS], -1)
        x = merge.reduction(merge.norm(eight))

    return F.layer_norm(x, x.shape[-1:]).flatten(1, 3)


def dense_nnformer(encoder, crop, masked):
    """The same for nnFormer, with zeros for hidden tokens before every convolution."""
    units = [size // unit for size, unit in zip(crop.shape[2:], encoder.unit)]

    def hidden(x):
        return hidden_grid(masked, units, [n // u for n, u in zip(x.shape[1:4], units)])

    def convolve(convolution, x):
        x = x.masked_fill(hidden(x)[..., None], 0).permute(0, 4, 1, 2, 3)
        x = F.conv3d(x, convolution.weight, convolution.bias, convolution.stride, 1)
        return x.permute(0, 2, 3, 4, 1)

    x = crop.permute(0, 2, 3, 4, 1)
    embed = encoder.patch_embed
    for convolution, norm in list(zip(embed.convolutions, embed.norms))[:3]:
        x = norm(F.gelu(convolve(convolution, x)))
    x = embed.norms[3](convolve(embed.convolutions[3], x))

    for index, stage in enumerate(encoder.stages):
        if index:
            merge = encoder.merges[index - 1]
            x = convolve(merge.reduction, merge.norm(F.gelu(x)))
        x = dense_stage(stage, x, hidden(x))

    return encoder.norm(x).flatten(1, 3)
