"""Conditional anatomical semantic alignment, CASA (Alice, Sec. 3.3, Fig. 3).

Shapes: B crops, N tokens of a crop, V visible tokens, E width of the encoder, C width of the
projections.
"""

import torch.nn.functional as F
from torch import Tensor, nn


class CASA(nn.Module):
    """Single-head cross-attention without residual: visible tokens query the whole crop.

    Args:
        visible_width: width E of the online encoder's tokens.
        channels: width C of the projected tokens and of the result.
    """

    def __init__(self, visible_width: int, channels: int):
        super().__init__()
        self.norm_query = nn.LayerNorm(visible_width)
        self.norm_context = nn.LayerNorm(channels)
        self.to_query = nn.Linear(visible_width, channels, bias=False)  # W_q
        self.to_key = nn.Linear(channels, channels, bias=False)  # W_k
        self.to_value = nn.Linear(channels, channels, bias=False)  # W_v
        self.zeta = nn.Linear(channels, channels)

    def forward(self, visible: Tensor, context: Tensor) -> Tensor:
        """Gather from the whole crop what the visible tokens ask for.

        Args:
            visible: (B, V, E) tokens of the masked view.
            context: (B, N, C) tokens of the whole crop: H (reconstructed) or Y (intact).

        Returns:
            (B, V, C): the student embedding S for H, the teacher embedding T for Y.
        """
        query = self.to_query(self.norm_query(visible))  # (B, V, C)

        context = self.norm_context(context)
        key = self.to_key(context)  # (B, N, C)
        value = self.to_value(context)  # (B, N, C)

        matched = F.scaled_dot_product_attention(query, key, value)  # Eq. 3, scale 1 / sqrt(C)
        return self.zeta(matched)  # Eq. 4
