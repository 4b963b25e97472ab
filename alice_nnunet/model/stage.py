"""A stage of Swin's blocks: regular and shifted windows in turn, over an intact grid or over visible units."""

import torch.nn.functional as F
from torch import Tensor, nn

from alice_nnunet.geometry import Triple, ceil_to
from alice_nnunet.model.window_attention import WindowBlock
from alice_nnunet.model.windows import Packing, bias_steps, fit_windows, pack_blocks, pack_grid


class Stage(nn.Module):
    """depth blocks of one width, (B, V, z, y, x, C) -> the same shape; see units.py and windows.py.

    window: (z, y, x) in tokens. positions: how offsets in a window are read from the bias table: right, or as published
    weights had them, monai (misread in windows smaller than window) or nnformer (several offsets share a row). The
    latter two attend to padding too, as their authors' networks do, and encode intact crops only.
    """

    def __init__(self, width: int, depth: int, heads: int, window: Triple, positions: str = "right"):
        super().__init__()
        self.window, self.positions = tuple(window), positions
        self.blocks = nn.ModuleList(WindowBlock(width, heads, self.window) for _ in range(depth))

    def steps(self) -> Triple:
        """See bias_steps. nnFormer's: 3 w - 1 and 2 w - 1 along y where (2 w - 1)^2 and 2 w - 1 belong."""
        y = self.window[1]
        return (3 * y - 1, 2 * y - 1, 1) if self.positions == "nnformer" else bias_steps(self.window)

    def pack(self, blocks: Tensor, corners: Tensor | None, units: Triple, shifted: bool) -> Packing:
        """The packing of the tokens, which all blocks with the same shift share."""
        block, device = tuple(blocks.shape[2:5]), blocks.device
        if corners is None:
            windows = fit_windows(self.window, block, shifted)
            return pack_grid(len(blocks), block, windows, self.window, self.steps(), self.positions == "monai", device)
        grid = tuple(u * n for u, n in zip(units, block))
        first = corners * corners.new_tensor(block)
        return pack_blocks(first, block, grid, fit_windows(self.window, grid, shifted), self.window, self.steps())

    def forward(self, blocks: Tensor, corners: Tensor | None, units: Triple) -> Tensor:
        """blocks: (B, V, z, y, x, C). corners: (B, V, 3) in the grid of units, None for intact crops. units: that grid."""
        if self.positions != "right":
            return self.forward_padded(blocks, corners)
        x = blocks.flatten(0, 4)                                                                     # (R, C)
        packings = [self.pack(blocks, corners, units, shifted) for shifted in (False, True)[:len(self.blocks)]]
        for index, block in enumerate(self.blocks):
            x = block(x, packings[index % 2])
        return x.view_as(blocks)

    def forward_padded(self, blocks: Tensor, corners: Tensor | None) -> Tensor:
        """As the published networks compute it: each attention sees zeros at the end of axes that are no multiple of the
        window, and takes them for tokens."""
        if corners is not None:
            raise ValueError("bug_compatible encoders take intact crops only")
        grid = tuple(blocks.shape[2:5])
        size = ceil_to(grid, fit_windows(self.window, grid, False).size)
        widen = [n for old, new in zip(reversed(grid), reversed(size)) for n in (0, new - old)]
        pad = lambda x: F.pad(x.view_as(blocks), (0, 0, *widen))                                     # (B, 1, size, C)
        crop = lambda x: x.view(len(blocks), 1, *size, -1)[:, :, :grid[0], :grid[1], :grid[2]].flatten(0, 4)
        padded = pad(blocks)
        packings = [self.pack(padded, None, (1, 1, 1), shifted) for shifted in (False, True)[:len(self.blocks)]]
        x = blocks.flatten(0, 4)
        for index, block in enumerate(self.blocks):
            x = x + crop(block.attention(pad(block.norm1(x)).flatten(0, 4), packings[index % 2]))
            x = x + block.mlp(block.norm2(x))
        return x.view_as(blocks)
