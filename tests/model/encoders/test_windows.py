"""Windows and their packing."""

import itertools

import pytest
import torch

from alice_nnunet.model.encoders import window_attention
from alice_nnunet.model.encoders.bias_table import BiasTable, box_positions
from alice_nnunet.model.encoders.window_attention import BiasOfPairs, SelfAttention
from alice_nnunet.model.encoders.windows import (
    Windows,
    axis_segments,
    fit_windows,
    pack_blocks,
    pack_grid,
)

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    "length, size, offset",
    [(5, 2, 0), (5, 2, 1), (4, 4, 0), (7, 3, 2), (3, 5, 0), (8, 4, 2), (2, 1, 0)],
)
def test_pieces_of_an_axis_are_its_windows(length, size, offset):
    numbers = [(token + offset) // size for token in range(length)]

    found = [None] * length
    for segment in axis_segments(length, size, offset):
        for token in range(length)[segment.tokens]:
            window, position = divmod(token - segment.start, segment.size)
            found[token] = segment.start, window
            assert (token + offset) % size == segment.offset + position

    assert same_as_next(found) == same_as_next(numbers)


def same_as_next(windows: list) -> list[bool]:
    """Whether each token is in the same window as the next."""
    return [a == b for a, b in itertools.pairwise(windows)]


def test_short_axes_are_one_window_and_not_shifted():
    assert fit_windows((7, 7, 7), (7, 8, 3), True) == Windows((7, 7, 3), (0, 4, 0))
    assert fit_windows((7, 7, 7), (9, 8, 3), False) == Windows((7, 7, 3), (0, 0, 0))


@pytest.mark.parametrize("smallest", [1, 8, 32])
@pytest.mark.parametrize("shifted", [False, True])
def test_groups_are_bounded_and_hold_every_token_once(smallest, shifted):
    grid = (8, 12, 12)
    window = (4, 5, 4)
    corners = torch.tensor([[(0, 4, 8), (4, 4, 4), (4, 8, 8)], [(0, 0, 0), (4, 0, 0), (0, 8, 4)]])
    windows = fit_windows(window, grid, shifted)
    packing = pack_blocks(corners, (4, 4, 4), grid, windows, BiasTable(window), smallest=smallest)

    rows = 2 * 3 * 64
    assert sorted(packing.row_of_slot[~packing.spare].tolist()) == list(range(rows))
    assert torch.equal(packing.row_of_slot[packing.slot_of_row], torch.arange(rows))
    assert sum(batch.groups * batch.slots for batch in packing.batches) == len(packing.row_of_slot)
    assert all(smallest <= batch.slots <= max(smallest, 4 * 5 * 4) for batch in packing.batches)

    # The name of a row's window: its crop and its place in the grid of windows
    tokens = corners.unsqueeze(2) + box_positions((4, 4, 4), CPU)
    numbers = (tokens + torch.tensor(windows.offset)) // torch.tensor(windows.size)
    names = [(crop, *number) for crop in range(2) for number in numbers[crop].view(-1, 3).tolist()]

    start = 0
    for batch in packing.batches:
        for group in range(batch.groups):
            slots = range(start, start + batch.slots)
            for i, j in itertools.product(range(batch.slots), repeat=2):
                together = (
                    names[packing.row_of_slot[slots[i]]] == names[packing.row_of_slot[slots[j]]]
                )
                if packing.spare[slots[i]] or packing.spare[slots[j]]:
                    together = together and not packing.spare[slots[j]]
                assert (batch.bias_rows[group, i, j] < BiasTable(window).rows) == together
            start += batch.slots


def test_an_intact_grid_has_no_spare_slots():
    packing = pack_grid(
        2, (5, 4, 7), fit_windows((3, 4, 4), (5, 4, 7), True), BiasTable((3, 4, 4)), CPU
    )
    assert packing.spare is None and packing.padding == 0
    assert sorted(packing.row_of_slot.tolist()) == list(range(2 * 5 * 4 * 7))
    assert torch.equal(
        packing.row_of_slot[packing.slot_of_row], torch.arange(len(packing.row_of_slot))
    )


@pytest.mark.parametrize("indexing", ["monai", "nnformer"])
def test_published_networks_fill_windows_up_with_padding(indexing):
    windows = fit_windows((3, 4, 4), (5, 4, 7), True)
    packing = pack_grid(2, (5, 4, 7), windows, BiasTable((3, 4, 4), indexing), CPU)
    assert packing.padding == 2 * (6 * 4 * 8 - 5 * 4 * 7)
    assert sorted(packing.row_of_slot.tolist()) == list(range(2 * 6 * 4 * 8))


@pytest.mark.parametrize("indexing", ["exact", "monai", "nnformer"])
@pytest.mark.parametrize("grid", [(5, 4, 7), (9, 10, 3), (8, 8, 8)])
def test_joined_windows_give_what_the_cut_ones_give(indexing, grid):
    table = BiasTable((3, 4, 4), indexing)
    windows = fit_windows(table.window, grid, True)
    torch.manual_seed(0)
    layer = SelfAttention(8, 2, table).double()
    x = torch.randn(2 * grid[0] * grid[1] * grid[2], 8, dtype=torch.double, requires_grad=True)
    wanted = torch.randn(x.shape, dtype=torch.double)

    results = []
    for joined in (False, True):
        packing = pack_grid(2, grid, windows, table, CPU, joined)
        out = layer(x, packing)
        gradients = torch.autograd.grad((out * wanted).sum(), [x, *layer.parameters()])
        results.append((out, *gradients))
        assert not joined or len(packing.batches) <= 8

    for ours, theirs in zip(*results):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_gradients_of_biases_are_summed_in_float32():
    table = torch.zeros(1, 3, requires_grad=True)
    rows = torch.zeros(1, 128, 128, dtype=torch.int16)  # 16,384 pairs of one row
    bias = BiasOfPairs.apply(table, rows, torch.bfloat16)
    assert bias.dtype == torch.bfloat16

    bias.backward(torch.full_like(bias, 0.01))
    expected = 128 * 128 * torch.tensor(0.01, dtype=torch.bfloat16).float()
    torch.testing.assert_close(table.grad[0, 0], expected, rtol=1e-5, atol=0)


def test_gradients_of_biases_are_the_same_from_copies_of_the_table(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(3, 9, generator=generator, dtype=torch.double)
    table[:, -1] = -torch.inf  # pairs that must not attend
    table.requires_grad_()
    rows = torch.randint(0, 9, (5, 6, 6), generator=generator, dtype=torch.int16)
    rows.diagonal(dim1=1, dim2=2).fill_(4)  # every slot attends to itself
    assert (rows == 8).any()
    scores, wanted = torch.randn(2, 5, 3, 6, 6, generator=generator, dtype=torch.double)

    def gradient(bias):
        attended = (scores + bias).softmax(-1)
        return torch.autograd.grad((attended * wanted).sum(), table)[0]

    expected = gradient(table[:, rows.long()].transpose(0, 1))
    for copies in (1, 4, 64):
        monkeypatch.setattr(window_attention, "copies_of_table", lambda _, copies=copies: copies)
        found = gradient(BiasOfPairs.apply(table, rows, torch.double))
        torch.testing.assert_close(found[:, :-1], expected[:, :-1])


@pytest.mark.parametrize("copies", [4, 64])
def test_few_pairs_share_a_row_of_the_copies(copies):
    slots, length = 128, 30
    rows = torch.full((1, slots, slots), length - 1)  # none may attend
    spread = window_attention.spread_over_copies(rows, copies, length)
    assert spread.min() >= 0 and spread.max() < copies * length

    pairs = spread.flatten().bincount(minlength=copies * length)
    assert pairs.max() <= 4 * slots * slots / (copies * length)


def test_groups_beyond_what_a_kernel_takes_are_divided(monkeypatch):
    grid = (4, 4, 6)
    table = BiasTable((2, 2, 2))
    layer = SelfAttention(8, 2, table)
    x = torch.randn(2 * 4 * 4 * 6, 8)
    packing = pack_grid(2, grid, fit_windows(table.window, grid, False), table, CPU)
    whole = layer(x, packing)

    sizes = []

    def on_gpu(query, key, value, bias):
        sizes.append(len(query))
        return torch.nn.functional.scaled_dot_product_attention(query, key, value, bias)

    monkeypatch.setattr(window_attention, "attention", on_gpu)
    monkeypatch.setattr(window_attention, "groups_at_a_time", groups_of_ten)
    torch.testing.assert_close(layer(x, packing), whole)
    assert max(sizes) == 10 and sum(sizes) == 2 * 4 * 4 * 6 // 8


def groups_of_ten(device: torch.device, heads: int, slots: int) -> int:
    return 10


def test_a_gpu_takes_as_many_groups_as_its_grid_has_blocks():
    assert window_attention.groups_at_a_time(torch.device("cuda"), 3, 343) == 65_535
    assert window_attention.groups_at_a_time(CPU, 4, 512) == 1
