"""Vision transformer that encodes visible tokens only: UNETR's encoder (Hatamizadeh et al. 2022), Alice Sec. 3.1.

B batch, C channels, D H W voxels in nnU-Net's (z, y, x) order, N tokens, V visible tokens, E width.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from alice_nnunet.geometry import Triple, grid_of
from alice_nnunet.model.transformer import Recomputable
from alice_nnunet.model.positions import resize_positions, sincos_positions
from alice_nnunet.model.tokens import patchify, take_tokens


class Attention(nn.Module):
    """Multi-head self-attention, (B, N, E) -> (B, N, E)."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        if width % heads:
            raise ValueError(
                f"width must be a multiple of heads, got width {width} and {heads} heads"
            )
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)  # UNETR's has no bias
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, n, e = x.shape
        query, key, value = (
            self.qkv(x).reshape(b, n, 3, self.heads, e // self.heads).permute(2, 0, 3, 1, 4)
        )
        mixed = F.scaled_dot_product_attention(query, key, value)  # (B, heads, N, E / heads)
        return self.out(mixed.transpose(1, 2).reshape(b, n, e))


class Block(Recomputable):
    """Pre-norm transformer block, (B, N, E) -> (B, N, E)."""

    def __init__(self, width: int, heads: int, mlp_ratio: float = 4.0):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.mlp = nn.Sequential(
            nn.Linear(width, int(width * mlp_ratio)),
            nn.GELU(),
            nn.Linear(int(width * mlp_ratio), width),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    """UNETR's encoder on 16 x 16 x 16 voxel tokens.

    in_channels: image channels. crop_size: voxels of the pretraining crop, it fixes the grid on which the learned
    position embeddings live; other crops interpolate them. width, depth, heads: of the transformer.
    """

    unit: Triple = (16, 16, 16)  # voxels hidden or shown together; for the ViT one token

    def __init__(
        self,
        in_channels: int,
        crop_size: Triple,
        width: int = 768,
        depth: int = 12,
        heads: int = 12,
    ):
        super().__init__()
        self.grid, self.width = grid_of(crop_size, self.unit), width
        self.patch_embed = nn.Conv3d(in_channels, width, self.unit, self.unit)
        self.positions = nn.Parameter(
            sincos_positions(self.grid, width)
        )  # (1, N, E), learned from there on
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.apply(init_weights)

    def embed(self, crop: Tensor, keep: Tensor | None) -> Tensor:
        """Voxels and positions of the tokens in keep, or of all. Hidden voxels are left out before any arithmetic."""
        patches = patchify(crop, self.unit)  # (B, N, C * 4096)
        positions = resize_positions(self.positions, self.grid, grid_of(crop.shape[2:], self.unit))
        if keep is not None:
            patches = take_tokens(patches, keep)  # (B, V, C * 4096)
            positions = take_tokens(positions.expand(len(crop), -1, -1), keep)  # (B, V, E)
        return (
            F.linear(patches, self.patch_embed.weight.flatten(1), self.patch_embed.bias) + positions
        )

    def forward(self, crop: Tensor, keep: Tensor | None = None) -> Tensor:
        """Encode the tokens listed in keep, or all of them (Alice, Sec. 3.1).

        crop: (B, C, D, H, W); keep: (B, V). Returns (B, V, E), or (B, N, E) without keep.
        """
        x = self.embed(crop, keep)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def features(self, crop: Tensor) -> list[Tensor]:
        """What UNETR's decoder takes: the tokens at 1/4, 1/2 and 3/4 of the depth and the last ones, as volumes.

        crop: (B, C, D, H, W). Returns 4 tensors (B, E, D/16, H/16, W/16). With 12 blocks these are the outputs of
        blocks 4, 7, 10 and, after the last norm, 12: the ones MONAI's UNETR uses.
        """
        x, depth, grid = (
            self.embed(crop, None),
            len(self.blocks),
            grid_of(crop.shape[2:], self.unit),
        )
        wanted, taken = {depth // 4, depth // 2, 3 * depth // 4}, []
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index in wanted:
                taken.append(x)
        return [
            t.transpose(1, 2).reshape(len(crop), self.width, *grid) for t in (*taken, self.norm(x))
        ]


def init_weights(module: nn.Module) -> None:
    """Truncated normal of 0.02 and zero biases, as ViT and UNETR; the patch projection as a linear layer (MAE)."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Conv3d):
        nn.init.xavier_uniform_(module.weight.view(len(module.weight), -1))
