"""Relative position bias: which row of its table belongs to a pair of tokens in a window (Liu et al. 2021)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from alice_nnunet.geometry import Triple


@dataclass(frozen=True)
class BiasTable:
    """A row for each offset between two tokens of a window, z slowest; smaller windows use the rows of their offsets.

    window: (z, y, x) in tokens. reading: right, or as published weights were trained. monai: windows smaller than the
    table's number their tokens in their own order and are read as if they were of the table's size. nnformer: one token
    along z and y counts 3 w - 1 and 2 w - 1 rows, w being the window along y, so several offsets share a row.
    """

    window: Triple
    reading: str = "right"

    @property
    def rows(self) -> int:
        """Number of rows."""
        z, y, x = self.window
        return (2 * z - 1) * (2 * y - 1) * (2 * x - 1)

    @property
    def steps(self) -> Triple:
        """Rows between offsets that differ by one token along z, y and x."""
        _, y, x = self.window
        return (
            (3 * y - 1, 2 * y - 1, 1)
            if self.reading == "nnformer"
            else ((2 * y - 1) * (2 * x - 1), 2 * x - 1, 1)
        )

    @property
    def zero(self) -> int:
        """Row of the offset 0."""
        return sum((w - 1) * s for w, s in zip(self.window, self.steps))

    def line(self, places: Tensor, size: Triple) -> Tensor:
        """A number for each token, whose difference for two tokens is the distance of their row from that of offset 0.

        places: (..., 3), in a window of size. Returns (...).
        """
        if self.reading == "monai":
            number = (places * places.new_tensor((size[1] * size[2], size[2], 1))).sum(-1)
            _, y, x = self.window
            places = torch.stack([number // (y * x), number // x % y, number % x], -1)
        return (places * places.new_tensor(self.steps)).sum(-1)

    def pairs(self, line: Tensor) -> Tensor:
        """Row for each pair of tokens, (..., T) of line() -> (..., T, T)."""
        return line.unsqueeze(-1) - line.unsqueeze(-2) + self.zero
