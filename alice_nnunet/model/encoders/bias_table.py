"""Relative position bias: which row of the bias table a pair of tokens in a window reads.

See Liu et al. 2021 (Swin Transformer). Sizes and positions are (z, y, x), in tokens.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from alice_nnunet.geometry import Triple


@dataclass(frozen=True)
class BiasTable:
    """A bias table with one row for each offset between two tokens of a window, z slowest.

    The row of a pair is linear in its offset: `code(i) - code(j) + zero_row`, where the code of a
    token is its position times `strides`, summed.

    Attributes:
        window: size of the largest window. Smaller windows read the rows of their own offsets.
        indexing: "exact", or the way in which published weights were trained:
            "monai": a window smaller than `window` numbers its tokens in its own order, but these
            numbers are read as positions in a window of full size.
            "nnformer": the strides along z and y are 3 w - 1 and 2 w - 1, where w is the window
            along y, so several offsets share a row.
    """

    window: Triple
    indexing: str = "exact"

    @property
    def rows(self) -> int:
        """Number of rows."""
        z, y, x = self.window
        return (2 * z - 1) * (2 * y - 1) * (2 * x - 1)

    @property
    def strides(self) -> Triple:
        """Rows between offsets that differ by one token along z, y and x."""
        _, y, x = self.window
        if self.indexing == "nnformer":
            return (3 * y - 1, 2 * y - 1, 1)
        return ((2 * y - 1) * (2 * x - 1), 2 * x - 1, 1)

    @property
    def zero_row(self) -> int:
        """Row of the offset (0, 0, 0)."""
        return sum((w - 1) * stride for w, stride in zip(self.window, self.strides))

    def codes(self, positions: Tensor, size: Triple) -> Tensor:
        """Code of each token, see the class.

        Args:
            positions: (..., 3) positions inside a window.
            size: size of this window, at most `window`.

        Returns:
            (...).
        """
        z, y, x = positions.unbind(-1)

        if self.indexing == "monai":
            number = (z * size[1] + y) * size[2] + x
            _, window_y, window_x = self.window
            z = number // (window_y * window_x)
            y = number // window_x % window_y
            x = number % window_x

        stride_z, stride_y, stride_x = self.strides
        return z * stride_z + y * stride_y + x * stride_x

    def pair_rows(self, codes: Tensor) -> Tensor:
        """Row of each pair of tokens, codes (..., T) -> (..., T, T)."""
        return codes.unsqueeze(-1) - codes.unsqueeze(-2) + self.zero_row

    def repeat_border(self, bias: Tensor, seen: Triple) -> Tensor:
        """Give offsets that no crop had the bias of the nearest offset that one had.

        Args:
            bias: (rows, heads), with indexing "exact".
            seen: size of the largest window that crops had (z, y, x); offsets of `seen` tokens and
                more were never trained.

        Returns:
            (rows, heads).
        """
        z, y, x = (
            torch.arange(2 * window - 1).clamp(window - size, window + size - 2)
            for window, size in zip(self.window, seen)
        )
        by_offset = bias.view(*(2 * window - 1 for window in self.window), -1)
        return by_offset[z][:, y][:, :, x].reshape_as(bias)

    def full_window_rows(self) -> Tensor:
        """Row of each pair of tokens of a window of full size, (T, T), tokens with z slowest.

        Published networks keep this in their state dict as `relative_position_index`.
        """
        positions = box_positions(self.window, torch.device("cpu"))
        return self.pair_rows(self.codes(positions, self.window))


def box_positions(shape: Triple, device: torch.device) -> Tensor:
    """Positions of all tokens of a box, z slowest. Returns (tokens, 3)."""
    axes = [torch.arange(length, device=device) for length in shape]
    return torch.cartesian_prod(*axes).view(-1, 3)
