"""The online decoder (Alice, Sec. 3.1): from visible tokens to voxels and tokens of the whole crop.

Shapes: B crops, N tokens of a crop, V visible tokens, E width of the encoder.
"""

import torch
from torch import Tensor, nn

from alice_nnunet.geometry import Triple
from alice_nnunet.model.initialisation import truncated_normal
from alice_nnunet.model.positions import sincos_positions
from alice_nnunet.model.tokens import put_tokens
from alice_nnunet.model.transformer import Block


class Decoder(nn.Module):
    """Light transformer over all N tokens: visible tokens and, for hidden ones, a mask token.

    Args:
        encoder_width: E.
        grid: tokens of the crop along (z, y, x).
        voxels: values of one token, channels included.
        width: width of the decoder's own tokens.
        depth: number of transformer blocks.
        heads: attention heads of each block.
        tokens: whether it also returns tokens. They return to width E, so that phi and its EMA copy
            psi have the same shape.
    """

    def __init__(
        self,
        encoder_width: int,
        grid: Triple,
        voxels: int,
        width: int,
        depth: int,
        heads: int,
        tokens: bool = True,
    ):
        super().__init__()
        self.enter = nn.Linear(encoder_width, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(sincos_positions(grid, width))

        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

        self.to_voxels = nn.Linear(width, voxels)
        self.to_tokens = nn.Linear(width, encoder_width) if tokens else None

        self.apply(truncated_normal)
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(self, visible: Tensor, keep: Tensor) -> tuple[Tensor, Tensor | None]:
        """Reconstruct whole crops.

        Args:
            visible: (B, V, E) tokens of the online encoder.
            keep: (B, V) indices of these tokens.

        Returns:
            Predicted voxels (B, N, voxels), and tokens (B, N, E) or None.
        """
        entered = self.enter(visible)  # (B, V, width)
        mask_token = self.mask_token.to(entered.dtype)
        background = mask_token.expand(len(entered), self.positions.shape[1], -1)
        x = put_tokens(entered, keep, background) + self.positions  # (B, N, width)

        for block in self.blocks:
            x = block(x)
        x = self.norm(x)

        tokens = self.to_tokens(x) if self.to_tokens is not None else None
        return self.to_voxels(x), tokens
