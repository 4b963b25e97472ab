"""Vision transformer: UNETR's encoder (Hatamizadeh et al. 2022), on visible tokens only.

Shapes: B crops, C channels, D H W voxels in (z, y, x) order, N tokens, V visible tokens, E width.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from alice_nnunet.geometry import Triple, grid_of, triple
from alice_nnunet.model.encoders.base import Encoder
from alice_nnunet.model.initialisation import truncated_normal
from alice_nnunet.model.positions import resize_positions, sincos_positions
from alice_nnunet.model.tokens import patchify, take_tokens
from alice_nnunet.model.transformer import Block

TOKEN: Triple = (16, 16, 16)  # voxels of a token of UNETR and of ViT-B/16
EDGES = (8, 16)  # voxels along an axis that UNETR's decoder can halve its way to


class ViT(Encoder):
    """UNETR's encoder, of tokens of 16 x 16 x 16 voxels or smaller ones. A unit is one token.

    Args:
        in_channels: image channels.
        crop_size: voxels of the pretraining crop (z, y, x). It fixes the grid on which the learned
            position embeddings live; other crops interpolate them. Fine-tuning makes its own table
            for its patch, see finetuning/network.py.
        width: width E of a token.
        depth: number of transformer blocks.
        heads: attention heads of each block.
        token: voxels of a token (z, y, x), 8 or 16 along each axis.

    Raises:
        ValueError: the token has another size.
    """

    def __init__(
        self,
        in_channels: int,
        crop_size: Triple,
        width: int = 768,
        depth: int = 12,
        heads: int = 12,
        token: Triple = TOKEN,
    ):
        super().__init__()
        if any(edge not in EDGES for edge in token):
            raise ValueError(f"token must have 8 or 16 voxels along each axis, got {token}")

        self.unit = triple(token)
        self.grid = grid_of(crop_size, self.unit)
        self.width = width

        self.patch_embed = nn.Conv3d(in_channels, width, self.unit, self.unit)
        # (1, N, E). The embeddings start as sines and cosines and are learned from there.
        self.positions = nn.Parameter(sincos_positions(self.grid, width))
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.apply(truncated_normal)

    def embed(self, crop: Tensor, keep: Tensor | None) -> Tensor:
        """Tokens before the first block: embedded voxels plus positions.

        Hidden voxels are left out before any arithmetic. Arguments and result as for `forward`.
        """
        patches = patchify(crop, self.unit)  # (B, N, C * voxels)
        positions = resize_positions(self.positions, self.grid, grid_of(crop.shape[2:], self.unit))
        if keep is not None:
            patches = take_tokens(patches, keep)  # (B, V, C * voxels)
            positions = take_tokens(positions.expand(len(crop), -1, -1), keep)  # (B, V, E)

        tokens = F.linear(patches, self.patch_embed.weight.flatten(1), self.patch_embed.bias)
        return tokens + positions

    def forward(self, crop: Tensor, keep: Tensor | None = None) -> Tensor:
        """Encode the tokens listed in `keep`, or all of them. See `Encoder.forward`."""
        x = self.embed(crop, keep)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def features(self, crop: Tensor) -> list[Tensor]:
        """The tokens at 1/4, 1/2 and 3/4 of the depth and the last ones, for UNETR's decoder.

        With 12 blocks these are the outputs of blocks 4, 7, 10 and, after the last norm, 12: the
        ones that MONAI's UNETR uses. With fewer than 3 blocks some of them are the same and come
        once.

        Args:
            crop: (B, C, D, H, W).

        Returns:
            4 volumes (B, E, d, h, w), with a voxel for each token, or fewer, see above.
        """
        depth = len(self.blocks)
        wanted = {depth // 4, depth // 2, 3 * depth // 4}

        outputs = []
        x = self.embed(crop, None)
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index in wanted:
                outputs.append(x)
        outputs.append(self.norm(x))

        grid = grid_of(crop.shape[2:], self.unit)
        return [tokens.transpose(1, 2).reshape(len(crop), self.width, *grid) for tokens in outputs]
