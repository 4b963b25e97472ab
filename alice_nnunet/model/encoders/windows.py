"""Which tokens attend to each other in a window, and how windows are packed for it.

A stage's tokens come as blocks: (B, V, z, y, x, E), block v of crop b starting at corner[b, v] of the stage's grid. For a
masked crop the blocks are its visible units, so hidden tokens do not exist; an intact crop is one block, the whole grid.

B batch, V blocks, R = B * V * z * y * x rows (tokens), G groups of T slots. Sizes are (z, y, x), in tokens of the stage.
"""

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from alice_nnunet.geometry import Triple, ceil_to
from alice_nnunet.model.encoders.bias_table import BiasTable

SMALLEST_GROUP = 32  # slots; windows with fewer visible tokens share a group


@dataclass(frozen=True)
class Windows:
    """Regular or shifted windows over a grid: token p is in window (p + offset) // size, at (p + offset) % size.

    That is Swin's cyclic shift with its mask: windows that reach over the border are cut there. Padding does not exist.
    """

    size: Triple
    offset: Triple


@dataclass(frozen=True)
class Batch:
    """Groups of equal length, for one call of attention."""

    groups: int
    slots: int  # T
    pairs: Tensor  # (G or 1, T, T): row of the bias table for each pair of slots, its rows where they must not attend


@dataclass(frozen=True)
class Packing:
    """The rows of all tokens, in an order in which windows lie together."""

    order: Tensor  # (S,): row of each slot; spare slots repeat some row and nothing attends to them
    place: Tensor  # (R + padding,): slot of each row
    spare: Tensor | None  # (S,) bool, None where every slot is a token
    batches: list[Batch]
    padding: int  # rows of zeros behind the tokens that take part; 0 but for weights published so


def fit_windows(window: Triple, grid: Triple, shifted: bool) -> Windows:
    """Windows on a grid: an axis that is no longer than the window is one window and is not shifted (Swin)."""
    size = tuple(min(w, g) for w, g in zip(window, grid))
    offset = tuple(w - w // 2 if shifted and g > w else 0 for w, g in zip(size, grid))
    return Windows(size, offset)


def axis_pieces(length: int, size: int, offset: int) -> list[tuple[int, int, int, int]]:
    """Windows along one axis, equal ones together: (first token, number of windows, tokens of each, place in the window)."""
    head = min((size - offset) % size, length)
    full, tail = divmod(length - head, size)
    pieces = [(0, 1, head, offset), (head, full, size, 0), (head + full * size, 1, tail, 0)]
    return [piece for piece in pieces if piece[1] * piece[2]]


def box_positions(shape: Triple, device: torch.device) -> Tensor:
    """Coordinates of all tokens of a box, z slowest. Returns (tokens, 3)."""
    return torch.cartesian_prod(*(torch.arange(n, device=device) for n in shape)).view(-1, 3)


def pack_grid(
    batch: int, grid: Triple, windows: Windows, table: BiasTable, device: torch.device
) -> Packing:
    """Pack every token of intact crops: windows of one shape are a batch and share one bias.

    batch: crops. Tables that are read as published networks do fill their windows up with padding, as these do.
    """
    count = batch * grid[0] * grid[1] * grid[2]
    full = grid if table.reading == "right" else ceil_to(grid, windows.size)
    rows = torch.full((batch, *full), -1, device=device)
    rows[:, : grid[0], : grid[1], : grid[2]] = torch.arange(count, device=device).view(batch, *grid)
    padding = rows.numel() - count
    rows[rows < 0] = torch.arange(count, count + padding, device=device)
    order, batches = [], []
    for z, y, x in itertools.product(
        *(axis_pieces(*axis) for axis in zip(full, windows.size, windows.offset))
    ):
        (z0, nz, dz, az), (y0, ny, dy, ay), (x0, nx, dx, ax) = z, y, x
        part = rows[:, z0 : z0 + nz * dz, y0 : y0 + ny * dy, x0 : x0 + nx * dx]
        order.append(
            part.reshape(batch, nz, dz, ny, dy, nx, dx).permute(0, 1, 3, 5, 2, 4, 6).flatten()
        )
        places = box_positions((dz, dy, dx), device) + torch.tensor((az, ay, ax), device=device)
        batches.append(
            Batch(
                batch * nz * ny * nx,
                dz * dy * dx,
                table.pairs(table.line(places, windows.size))[None],
            )
        )
    order = torch.cat(order)
    place = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=device))
    return Packing(order, place, None, batches, padding)


def pack_blocks(
    corners: Tensor,
    block: Triple,
    grid: Triple,
    windows: Windows,
    table: BiasTable,
    smallest: int = SMALLEST_GROUP,
) -> Packing:
    """Pack the tokens of visible units: groups of bounded size, whose tokens attend within their own window (GreenMIM).

    A group has smallest slots and several windows, or one window and smallest * 2, 4, ... slots, at most a whole window's.

    corners: (B, V, 3), first token of each unit. block: tokens of a unit. grid: of the whole crop.
    """
    window, places = tokens_in_windows(corners, block, grid, windows)  # (R,), (R, 3)
    line = table.line(places, windows.size)
    by_window = window.argsort(stable=True)
    _, lengths = window[by_window].unique_consecutive(return_counts=True)  # (windows,)
    starts, orders, spares, batches = lengths.cumsum(0) - lengths, [], [], []
    for length, chosen in by_length(lengths, smallest, windows.size):
        slots, owner, spare = fill_groups(
            starts[chosen], lengths[chosen], length, max(1, smallest // length)
        )  # (G, T)
        rows = by_window[slots]
        allowed = (owner.unsqueeze(-1) == owner.unsqueeze(-2)) & ~spare.unsqueeze(-2)
        batches.append(Batch(*rows.shape, table.pairs(line[rows]).where(allowed, table.rows)))
        orders.append(rows.flatten())
        spares.append(spare.flatten())
    order, spare = torch.cat(orders), torch.cat(spares)
    real = spare.logical_not().nonzero().flatten()
    return Packing(
        order, torch.empty_like(window).scatter_(0, order[real], real), spare, batches, padding=0
    )


def tokens_in_windows(
    corners: Tensor, block: Triple, grid: Triple, windows: Windows
) -> tuple[Tensor, Tensor]:
    """Number of each row's window, counted through all crops, and its position there. Returns (R,) and (R, 3)."""
    tokens = (
        corners.unsqueeze(-2)
        + box_positions(block, corners.device)
        + torch.tensor(windows.offset, device=corners.device)
    )
    size = torch.tensor(windows.size, device=corners.device)
    z, y, x = (tokens // size).unbind(-1)  # (B, V, block)
    nz, ny, nx = ((g + o - 1) // w + 1 for g, o, w in zip(grid, windows.offset, windows.size))
    crop = torch.arange(len(corners), device=corners.device).view(-1, 1, 1)
    return (((crop * nz + z) * ny + y) * nx + x).flatten(), (tokens % size).view(-1, 3)


def by_length(lengths: Tensor, smallest: int, size: Triple) -> list[tuple[int, Tensor]]:
    """Windows of about the same number of tokens: (slots that each gets, which they are), none of them empty.

    Slots are smallest / 8 (for those with fewer tokens too), then twice that and so on, at most a whole window's.
    """
    whole, slots, below, found = (
        max(smallest, size[0] * size[1] * size[2]),
        max(1, smallest // 8),
        0,
        [],
    )
    while below < whole:
        chosen = ((lengths > below) & (lengths <= slots)).nonzero().flatten()
        if len(chosen):
            found.append((min(slots, whole), chosen))
        below, slots = slots, 2 * slots
    return found


def fill_groups(
    starts: Tensor, lengths: Tensor, length: int, share: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Groups of share windows with length slots each.

    starts, lengths: (M,), of the windows' tokens in the order of windows. What is left over of a window's slots repeats its
    last token, what is left over of the last group repeats its last window, and both are spare.
    Returns place in that order, number of the window, and spare, (G, share * length) each.
    """
    count = len(starts)
    owner = torch.arange(-(-count // share) * share, device=starts.device)
    owner, filler = owner.clamp(max=count - 1), owner >= count
    step = torch.arange(length, device=starts.device)
    last = lengths[owner].unsqueeze(-1) - 1
    slots = starts[owner].unsqueeze(-1) + torch.minimum(step, last)
    spare = (step > last) | filler.unsqueeze(-1)
    shape = (-1, share * length)
    return (
        slots.view(shape),
        owner.unsqueeze(-1).expand(-1, length).reshape(shape),
        spare.view(shape),
    )
