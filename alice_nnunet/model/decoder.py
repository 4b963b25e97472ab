"""The online decoder: visible tokens and mask tokens in, voxels and tokens of the whole crop out (Alice, Sec. 3.1)."""

import torch
from torch import Tensor, nn

from alice_nnunet.geometry import Triple
from alice_nnunet.model.positions import sincos_positions
from alice_nnunet.model.tokens import put_tokens
from alice_nnunet.model.encoders.vit import Block, init_weights


class Decoder(nn.Module):
    """Light transformer over all N tokens.

    encoder_width: E. grid: tokens of the crop along (z, y, x). voxels: values of one token, channels included.
    """

    def __init__(
        self, encoder_width: int, grid: Triple, voxels: int, width: int, depth: int, heads: int
    ):
        super().__init__()
        self.enter = nn.Linear(encoder_width, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(sincos_positions(grid, width))
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.to_voxels = nn.Linear(width, voxels)
        self.to_tokens = nn.Linear(
            width, encoder_width
        )  # back to E, so that phi and its EMA psi have one shape
        self.apply(init_weights)
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(self, visible: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
        """visible: (B, V, E); keep: (B, V). Returns predicted voxels (B, N, voxels) and tokens (B, N, E)."""
        tokens = self.enter(visible)
        background = self.mask_token.to(tokens.dtype).expand(
            len(tokens), self.positions.shape[1], -1
        )
        x = put_tokens(tokens, keep, background) + self.positions  # (B, N, width)
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        return self.to_voxels(x), self.to_tokens(x)
