"""Stages of Swin's blocks: regular and shifted windows in turn, on an intact grid or visible units.

Shapes: B crops, V blocks of z y x tokens, C channels, R = B * V * z * y * x rows. See units.py and
windows.py.
"""

import torch
from torch import Tensor, nn

from alice_nnunet.geometry import Triple, triple
from alice_nnunet.model.encoders.bias_table import BiasTable
from alice_nnunet.model.encoders.window_attention import CrossBlock, WindowBlock
from alice_nnunet.model.encoders.windows import Packing, fit_windows, pack_blocks, pack_grid


class Stage(nn.Module):
    """Transformer blocks of one width, (B, V, z, y, x, C) -> the same shape.

    Args:
        width: channels C.
        depth: number of blocks.
        heads: attention heads of each block.
        table: bias table of the stage's windows. Tables with the indexing of published networks
            take intact crops only.
    """

    def __init__(self, width: int, depth: int, heads: int, table: BiasTable):
        super().__init__()
        self.table = table
        self.blocks = nn.ModuleList(WindowBlock(width, heads, table) for _ in range(depth))

    def forward(self, blocks: Tensor, corners: Tensor | None, units: Triple) -> Tensor:
        """Let tokens attend to each other within windows.

        Args:
            blocks: (B, V, z, y, x, C).
            corners: (B, V, 3) positions of the blocks in the grid of units, on the CPU; None for
                intact crops.
            units: size of this grid.

        Raises:
            ValueError: there are corners, and the bias table has the indexing of a published
                network.
        """
        if corners is not None and self.table.indexing != "exact":
            raise ValueError("bug_compatible encoders take intact crops only, got visible units")

        packings = pack_both(self.table, blocks, corners, units, depth=len(self.blocks))
        x = blocks.flatten(0, 4)  # (R, C)
        for index, block in enumerate(self.blocks):
            x = block(x, packings[index % 2])
        return x.view_as(blocks)


class CrossStage(nn.Module):
    """A stage of nnFormer's decoder.

    The first block queries the skip connection. The others, depth - 1 of them, are self-attention,
    beginning with shifted windows. Arguments as for `Stage`.
    """

    def __init__(self, width: int, depth: int, heads: int, table: BiasTable):
        super().__init__()
        self.table = table
        self.cross = CrossBlock(width, heads, table)
        self.blocks = nn.ModuleList(WindowBlock(width, heads, table) for _ in range(depth - 1))

    def forward(self, blocks: Tensor, skip: Tensor) -> Tensor:
        """Both are (B, 1, D, H, W, C), and so is the result."""
        depth = 1 + len(self.blocks)
        packings = pack_both(self.table, blocks, None, (1, 1, 1), depth)

        x = self.cross(blocks.flatten(0, 4), skip.flatten(0, 4), packings[0])  # (R, C)
        for index, block in enumerate(self.blocks, start=1):
            x = block(x, packings[index % 2])
        return x.view_as(blocks)


def pack_both(
    table: BiasTable, blocks: Tensor, corners: Tensor | None, units: Triple, depth: int
) -> list[Packing]:
    """The packings for regular and for shifted windows, which the blocks of a stage use in turn.

    A stage of one block gets the first only. Arguments as for `Stage.forward`.
    """
    packings = [pack(table, blocks, corners, units, shifted=False)]
    if depth > 1:
        packings.append(pack(table, blocks, corners, units, shifted=True))
    return packings


def pack(
    table: BiasTable, blocks: Tensor, corners: Tensor | None, units: Triple, shifted: bool
) -> Packing:
    """The packing of a stage's tokens for regular or shifted windows."""
    block = triple(blocks.shape[2:5])

    if corners is None:
        windows = fit_windows(table.window, block, shifted)
        joined = blocks.device.type != "cpu"
        return pack_grid(len(blocks), block, windows, table, blocks.device, joined)

    grid = triple(u * n for u, n in zip(units, block))
    windows = fit_windows(table.window, grid, shifted)
    first_tokens = corners * torch.tensor(block, device=corners.device)
    return pack_blocks(first_tokens, block, grid, windows, table, blocks.device)


def check_stages(depths: tuple, heads: tuple, windows: tuple) -> None:
    """Raise ValueError if depths, heads and windows are of different numbers of stages."""
    if not len(depths) == len(heads) == len(windows):
        raise ValueError(
            "depths, heads and windows need one value for each stage, "
            f"got {depths}, {heads}, {windows}"
        )
