"""Stages of Swin's blocks: regular and shifted windows in turn, over an intact grid or over visible units."""

from torch import Tensor, nn

from alice_nnunet.geometry import Triple
from alice_nnunet.model.encoders.bias_table import BiasTable
from alice_nnunet.model.encoders.window_attention import CrossBlock, WindowBlock
from alice_nnunet.model.encoders.windows import Packing, fit_windows, pack_blocks, pack_grid


class Stage(nn.Module):
    """depth blocks of one width, (B, V, z, y, x, C) -> the same shape; see units.py and windows.py.

    table: of the window. Tables that are not read right are those of published networks, for intact crops only.
    """

    def __init__(self, width: int, depth: int, heads: int, table: BiasTable):
        super().__init__()
        self.table = table
        self.blocks = nn.ModuleList(WindowBlock(width, heads, table) for _ in range(depth))

    def forward(self, blocks: Tensor, corners: Tensor | None, units: Triple) -> Tensor:
        """blocks: (B, V, z, y, x, C). corners: (B, V, 3) in the grid of units, None for intact crops. units: that grid.

        Raises ValueError for corners where the bias table is not read right.
        """
        if corners is not None and self.table.reading != "right":
            raise ValueError("bug_compatible encoders take intact crops only")
        x = blocks.flatten(0, 4)  # (R, C)
        packings = [
            pack(self.table, blocks, corners, units, shifted)
            for shifted in (False, True)[: len(self.blocks)]
        ]
        for index, block in enumerate(self.blocks):
            x = block(x, packings[index % 2])
        return x.view_as(blocks)


class CrossStage(nn.Module):
    """A stage of nnFormer's decoder: a block that asks the skip connection, then depth - 1 that go on with shifted windows."""

    def __init__(self, width: int, depth: int, heads: int, table: BiasTable):
        super().__init__()
        self.table, self.cross = table, CrossBlock(width, heads, table)
        self.blocks = nn.ModuleList(WindowBlock(width, heads, table) for _ in range(depth - 1))

    def forward(self, blocks: Tensor, skip: Tensor) -> Tensor:
        """(B, 1, D, H, W, C), twice -> the same shape."""
        packings = [
            pack(self.table, blocks, None, (1, 1, 1), shifted)
            for shifted in (False, True)[: 1 + len(self.blocks)]
        ]
        x = self.cross(blocks.flatten(0, 4), skip.flatten(0, 4), packings[0])  # (R, C)
        for index, block in enumerate(self.blocks, 1):
            x = block(x, packings[index % 2])
        return x.view_as(blocks)


def init_weights(module: nn.Module) -> None:
    """Xavier uniform, as MAE: the first stages are narrow, and weights of 0.02, right for a width of 768, leave all their
    tokens nearly alike. Zero biases, but for convolutions: air is 0, and where a token of it stays 0, each layer norm
    multiplies its gradient by 300."""
    if isinstance(module, (nn.Linear, nn.Conv3d)):
        nn.init.xavier_uniform_(module.weight.view(len(module.weight), -1))
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)


def pack(
    table: BiasTable, blocks: Tensor, corners: Tensor | None, units: Triple, shifted: bool
) -> Packing:
    """The packing of a stage's tokens, which all blocks with the same shift share.

    blocks, corners, units: see Stage.
    """
    block = tuple(blocks.shape[2:5])
    if corners is None:
        return pack_grid(
            len(blocks), block, fit_windows(table.window, block, shifted), table, blocks.device
        )
    grid = tuple(u * n for u, n in zip(units, block))
    return pack_blocks(
        corners * corners.new_tensor(block),
        block,
        grid,
        fit_windows(table.window, grid, shifted),
        table,
    )
