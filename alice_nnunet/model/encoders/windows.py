"""Which tokens share a window, and how the windows are packed for attention.

A stage's tokens come as blocks (B, V, z, y, x, E). Block v of crop b starts at token corners[b, v]
of the stage's grid. For a masked crop the blocks are its visible units, so hidden tokens do not
exist. An intact crop is one block, the whole grid.

Attention needs equal lengths, but windows hold different numbers of visible tokens. So windows are
packed into groups: a group has T slots and holds one window or several, and a slot holds a token or
is spare. Groups of equal length form a batch for one call of attention.

Shapes: B crops, V blocks, R = B * V * z * y * x rows (one for each token), S slots of all groups,
G groups of T slots. Sizes and positions are (z, y, x), in tokens of the stage.
"""

import functools
import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from alice_nnunet.geometry import Triple, ceil_to, triple
from alice_nnunet.model.encoders.bias_table import BiasTable, box_positions

CPU = torch.device("cpu")
SMALLEST_GROUP = 32  # slots; windows with fewer visible tokens share a group


@dataclass(frozen=True)
class Windows:
    """Regular or shifted windows over a grid.

    Token p is in window (p + offset) // size, at position (p + offset) % size. This is Swin's
    cyclic shift with its mask: windows that reach over the border are cut there, without padding.
    """

    size: Triple
    offset: Triple


@dataclass(frozen=True)
class AxisSegment:
    """Neighbouring windows of equal size along one axis."""

    start: int  # first token
    windows: int
    size: int  # tokens per window
    offset: int  # position of the first token inside its window

    @property
    def tokens(self) -> slice:
        """The tokens of all these windows."""
        return slice(self.start, self.start + self.windows * self.size)


@dataclass(frozen=True)
class AxisWindows:
    """Windows of equal shape along one axis.

    Attributes:
        tokens: (windows, size), which tokens they hold.
        positions: (size,), of the tokens inside their window.
        parts: (size,); tokens of different parts are of different windows and must not attend to
            each other.
    """

    tokens: Tensor
    positions: Tensor
    parts: Tensor


@dataclass(frozen=True)
class GroupBatch:
    """Groups of equal length, for one call of attention.

    Attributes:
        groups: G.
        slots: T.
        bias_rows: (G, T, T), or (1, T, T) if all groups are alike. Row of the bias table for each
            pair of slots, in a small integer type, for there are many pairs. Pairs that must not
            attend have the number of rows, one past the last.
    """

    groups: int
    slots: int
    bias_rows: Tensor


@dataclass(frozen=True)
class Packing:
    """The rows of all tokens in an order in which windows lie together.

    Attributes:
        row_of_slot: (S,). Spare slots repeat some row, and nothing attends to them.
        slot_of_row: (R + padding,).
        spare: (S,) bool, True for spare slots. None if every slot holds a token.
        batches: the groups, in the order of the slots.
        padding: rows of zeros behind the tokens that take part. 0 except for published weights.
    """

    row_of_slot: Tensor
    slot_of_row: Tensor
    spare: Tensor | None
    batches: list[GroupBatch]
    padding: int


def fit_windows(window: Triple, grid: Triple, shifted: bool) -> Windows:
    """Windows on a grid.

    An axis that is not longer than the window is one window and is not shifted (Swin).
    """
    size = triple(min(w, g) for w, g in zip(window, grid))
    offset = triple(w - w // 2 if shifted and g > w else 0 for w, g in zip(size, grid))
    return Windows(size, offset)


def axis_segments(length: int, size: int, offset: int) -> list[AxisSegment]:
    """Cut an axis of `length` tokens into windows, neighbours of equal size together."""
    head = min((size - offset) % size, length)  # tokens before the first whole window
    whole, tail = divmod(length - head, size)

    segments = [
        AxisSegment(start=0, windows=1, size=head, offset=offset),
        AxisSegment(start=head, windows=whole, size=size, offset=0),
        AxisSegment(start=head + whole * size, windows=1, size=tail, offset=0),
    ]
    return [segment for segment in segments if segment.windows and segment.size]


def axis_windows(segments: list[AxisSegment], joined: bool) -> list[AxisWindows]:
    """The segments of an axis as windows.

    Args:
        segments: of `axis_segments`.
        joined: put the cut windows at both ends into one, as Swin's cyclic shift does. Along three
            axes there are then at most 8 shapes of windows, otherwise 27.
    """
    found = []
    for segment in segments:
        tokens = torch.arange(segment.tokens.start, segment.tokens.stop, device=CPU)
        positions = segment.offset + torch.arange(segment.size, device=CPU)
        tokens = tokens.view(segment.windows, segment.size)
        found.append(AxisWindows(tokens, positions, torch.zeros_like(positions)))

    if not (joined and len(found) > 1 and segments[0].windows == segments[-1].windows == 1):
        return found

    head = found[0]
    *between, tail = found[1:]
    ends = AxisWindows(
        torch.cat([head.tokens, tail.tokens], 1),
        torch.cat([head.positions, tail.positions]),
        torch.cat([head.parts, tail.parts + 1]),
    )
    return [ends, *between]


@functools.lru_cache(maxsize=64)
@torch.inference_mode(False)  # a later training uses it, too
def pack_grid(
    batch: int,
    grid: Triple,
    windows: Windows,
    table: BiasTable,
    device: torch.device,
    joined: bool = False,
) -> Packing:
    """Pack every token of intact crops. Windows of one shape form a batch and share one bias.

    The packing of a grid is kept: each stage of each step asks for the same few.

    Published networks fill incomplete windows with padding and attend to it. Tables with their
    indexing do the same here.

    Args:
        batch: number of crops.
        grid: size of the grid.
        windows: the windows on this grid.
        table: bias table of the stage.
        device: where the packing is needed.
        joined: put the cut windows at both ends of an axis into one, with a mask between them. A
            GPU takes fewer and larger calls, a CPU smaller ones without pairs that are masked.
    """
    count = batch * grid[0] * grid[1] * grid[2]
    padded = grid if table.indexing == "exact" else ceil_to(grid, windows.size)

    # Number the tokens first, then the padding. All of it on the CPU, for it is small.
    inside = torch.zeros(batch, *padded, dtype=torch.bool, device=CPU)
    inside[:, : grid[0], : grid[1], : grid[2]] = True
    padding = inside.numel() - count
    rows = torch.empty(batch, *padded, dtype=torch.int64, device=CPU)
    rows[inside] = torch.arange(count, device=CPU)
    rows[~inside] = torch.arange(count, count + padding, device=CPU)

    # Each combination of windows along z, y and x has one shape.
    row_parts = []
    batches = []
    axes = [
        axis_windows(axis_segments(*axis), joined)
        for axis in zip(padded, windows.size, windows.offset)
    ]
    for z, y, x in itertools.product(*axes):
        part = rows[
            :,
            z.tokens[:, None, None, :, None, None],
            y.tokens[None, :, None, None, :, None],
            x.tokens[None, None, :, None, None, :],
        ]  # (batch, windows along z, y, x, tokens of a window along z, y, x)
        row_parts.append(part.flatten())

        positions = torch.cartesian_prod(z.positions, y.positions, x.positions).view(-1, 3)
        parts = torch.cartesian_prod(z.parts, y.parts, x.parts).view(-1, 3)
        codes = table.codes(positions, windows.size)
        together = (parts[:, None] == parts[None]).all(-1)
        bias_rows = pairs_of(table, codes, together)[None].to(device, non_blocking=True)

        groups = part[:, :, :, :, 0, 0, 0].numel()
        batches.append(GroupBatch(groups, len(codes), bias_rows))

    row_of_slot = torch.cat(row_parts)
    slots = torch.arange(len(row_of_slot), device=CPU)
    slot_of_row = torch.empty_like(row_of_slot).scatter_(0, row_of_slot, slots)
    return Packing(
        row_of_slot.to(device, non_blocking=True),
        slot_of_row.to(device, non_blocking=True),
        None,
        batches,
        padding,
    )


def pack_blocks(
    corners: Tensor,
    block: Triple,
    grid: Triple,
    windows: Windows,
    table: BiasTable,
    device: torch.device = CPU,
    smallest: int = SMALLEST_GROUP,
) -> Packing:
    """Pack the tokens of visible units: tokens attend within their own window (GreenMIM).

    A group has `smallest` slots and holds several windows, or it holds one window and has
    `smallest` * 2, 4, ... slots, at most those of a whole window.

    How many tokens a window has decides the sizes of tensors, so that is computed on the CPU, and
    what is computed for each token on the device. Nothing here waits for the device.

    Args:
        corners: (B, V, 3), first token of each unit, on the CPU.
        block: tokens of a unit.
        grid: size of the whole crop's grid.
        windows: the windows on this grid.
        table: bias table of the stage.
        device: where the packing is needed.
        smallest: slots of the shortest groups.
    """
    lengths = window_lengths(corners, block, grid, windows)
    starts = lengths.cumsum(0) - lengths  # where each window lies in the order of windows

    on_device = corners.to(device, non_blocking=True)
    window, positions = tokens_in_windows(on_device, block, grid, windows)  # (R,), (R, 3)
    codes = table.codes(positions, windows.size)
    by_window = window.argsort(stable=True)

    row_parts = []
    spare_parts = []
    batches = []
    for slots, chosen in windows_by_length(lengths, smallest, windows.size):
        share = max(1, smallest // slots)
        own_starts = starts[chosen].to(device, non_blocking=True)
        own_lengths = lengths[chosen].to(device, non_blocking=True)
        places, owner, spare = fill_groups(own_starts, own_lengths, slots, share)  # (G, T)
        rows = by_window[places]

        allowed = (owner.unsqueeze(-1) == owner.unsqueeze(-2)) & ~spare.unsqueeze(-2)
        bias_rows = pairs_of(table, codes[rows], allowed)
        batches.append(GroupBatch(groups=rows.shape[0], slots=rows.shape[1], bias_rows=bias_rows))
        row_parts.append(rows.flatten())
        spare_parts.append(spare.flatten())

    row_of_slot = torch.cat(row_parts)
    spare = torch.cat(spare_parts)

    # Spare slots repeat rows. Let them write behind the last row, where nothing is read.
    count = len(window)
    slots_of = torch.arange(len(row_of_slot), device=device)
    slot_of_row = window.new_empty(count + 1)
    slot_of_row.scatter_(0, row_of_slot.masked_fill(spare, count), slots_of)
    return Packing(row_of_slot, slot_of_row[:count], spare, batches, padding=0)


def pairs_of(table: BiasTable, codes: Tensor, allowed: Tensor) -> Tensor:
    """Row of the table for each pair of tokens, and one past the last where they must not attend.

    In 16 bits if they suffice: a batch of visible units has up to 100 million pairs.

    Args:
        table: bias table of the stage.
        codes: (..., T), of the tokens.
        allowed: (..., T, T) bool, of the pairs.

    Returns:
        (..., T, T) int16 or int32.
    """
    small = torch.int16 if table.rows <= torch.iinfo(torch.int16).max else torch.int32
    return table.pair_rows(codes.to(small)).masked_fill_(~allowed, table.rows)


def window_lengths(corners: Tensor, block: Triple, grid: Triple, windows: Windows) -> Tensor:
    """The number of visible tokens of each window, in the order of tokens_in_windows.

    A window has a box of tokens of each unit, and the box's edge along one axis depends on the
    unit's place along this axis alone.

    Args: see `pack_blocks`.

    Returns:
        (windows of all crops,).
    """
    edges = []
    for axis in range(3):
        first = corners[..., axis, None] + windows.offset[axis]  # (B, V, 1)
        of_token = (first + torch.arange(block[axis], device=CPU)) // windows.size[
            axis
        ]  # (B, V, block)
        count = windows_along(grid[axis], windows, axis)
        edges.append((of_token.unsqueeze(-1) == torch.arange(count, device=CPU)).sum(2).double())

    # Not in float32, which autocast would round.
    return torch.einsum("bvz,bvy,bvx->bzyx", *edges).round().long().flatten()


def windows_along(length: int, windows: Windows, axis: int) -> int:
    """The number of windows along an axis of so many tokens."""
    return (length + windows.offset[axis] - 1) // windows.size[axis] + 1


def tokens_in_windows(
    corners: Tensor, block: Triple, grid: Triple, windows: Windows
) -> tuple[Tensor, Tensor]:
    """The window of each row, and the position inside it.

    Args: see `pack_blocks`.

    Returns:
        Number of the window, counted through all crops, (R,), and position there, (R, 3).
    """
    device = corners.device
    tokens = corners.unsqueeze(-2) + box_positions(block, device)  # (B, V, block, 3)

    number = torch.arange(len(corners), device=device).view(-1, 1, 1)  # of the crop
    positions = []
    for axis in range(3):
        token = tokens[..., axis] + windows.offset[axis]
        number = number * windows_along(grid[axis], windows, axis) + token // windows.size[axis]
        positions.append(token % windows.size[axis])

    return number.flatten(), torch.stack(positions, -1).view(-1, 3)


def windows_by_length(lengths: Tensor, smallest: int, size: Triple) -> list[tuple[int, Tensor]]:
    """Sort windows by the number of slots that they get, so that few slots are spare.

    The numbers of slots are `smallest` / 8, then twice that and so on, at most a whole window's
    (or `smallest`, if that is more). A window gets the first number that holds its tokens.

    Args:
        lengths: (windows,) number of tokens of each window.
        smallest: slots of the shortest groups.
        size: size of a whole window.

    Returns:
        Pairs (slots, indices of the windows that get so many). No list of indices is empty.
    """
    most = max(smallest, math.prod(size))
    slots = max(1, smallest // 8)
    below = 0

    found = []
    while below < most:
        chosen = ((lengths > below) & (lengths <= slots)).nonzero().flatten()
        if len(chosen):
            found.append((min(slots, most), chosen))
        below = slots
        slots = 2 * slots
    return found


def fill_groups(
    starts: Tensor, lengths: Tensor, slots: int, share: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Fill groups of `share` windows with `slots` slots each.

    Slots that a window does not need repeat its last token. Windows that the last group does not
    need repeat the last window. Both are spare.

    Args:
        starts: (M,), where each window's tokens start in the order of windows.
        lengths: (M,), number of tokens of each window.
        slots: slots of one window.
        share: windows of one group.

    Returns:
        Three tensors (G, share * slots): place in the order of windows, number of the window,
        and whether the slot is spare.
    """
    count = len(starts)
    number = torch.arange(-(-count // share) * share, device=starts.device)  # M, rounded up
    owner = number.clamp(max=count - 1)
    repeated = number >= count

    step = torch.arange(slots, device=starts.device)
    last = lengths[owner].unsqueeze(-1) - 1
    places = starts[owner].unsqueeze(-1) + torch.minimum(step, last)
    spare = (step > last) | repeated.unsqueeze(-1)

    shape = (-1, share * slots)
    owners = owner.unsqueeze(-1).expand(-1, slots)
    return places.view(shape), owners.reshape(shape), spare.view(shape)
