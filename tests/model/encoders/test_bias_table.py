"""Rows of the bias table, right for every window, and as published networks read them."""

import itertools

import pytest
import torch

from alice_nnunet.model.encoders.bias_table import BiasTable


def tokens(size) -> torch.Tensor:
    return torch.tensor(list(itertools.product(*map(range, size))))


@pytest.mark.parametrize("window", [(7, 7, 7), (7, 7, 2), (4, 8, 5)])
@pytest.mark.parametrize("size", [(7, 7, 7), (6, 6, 6), (4, 7, 5), (1, 7, 2)])
def test_a_shrunken_window_reads_the_rows_of_its_offsets(window, size):
    size = tuple(min(s, w) for s, w in zip(size, window))
    offsets = itertools.product(*(range(1 - w, w) for w in window))
    number = {offset: row for row, offset in enumerate(offsets)}
    places = tokens(size)
    table = BiasTable(window)

    expected = [[number[tuple((a - b).tolist())] for b in places] for a in places]
    assert table.pair_rows(table.codes(places, size)).tolist() == expected and table.rows == len(
        number
    )


def test_monai_reads_two_per_cent_of_a_shrunken_window_right():
    """The figure counted in MONAI 1.6.1 for a window of 7 on a grid of 6."""
    places = tokens((6, 6, 6))
    exact = BiasTable((7, 7, 7))
    monai = BiasTable((7, 7, 7), "monai")

    right = exact.pair_rows(exact.codes(places, (6, 6, 6)))
    misread = monai.pair_rows(monai.codes(places, (6, 6, 6)))
    assert round((right == misread).double().mean().item() * 100, 2) == 2.03
    assert torch.equal(exact.full_window_rows(), monai.full_window_rows())


@pytest.mark.parametrize("window, rows", [(4, 115), (8, 547)])
def test_nnformers_offsets_share_rows(window, rows):
    """The figures counted in its authors' code."""
    cube = (window,) * 3
    table = BiasTable(cube, "nnformer")
    pairs = table.full_window_rows()
    assert len(pairs.unique()) == rows < table.rows and pairs.min() == 0
