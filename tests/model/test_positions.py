import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates

from alice_nnunet.model.positions import move_positions, resize_positions, sincos_positions


def test_sincos_is_the_formula():
    grid = (2, 3, 4)
    positions = sincos_positions(grid, 14)[0].numpy()  # 14: two values are left over
    assert positions.shape == (24, 14)

    for n, index in enumerate(np.ndindex(*grid)):
        for axis, i in enumerate(index):
            for j in range(2):
                angle = i / 10000 ** (j / 2)
                assert positions[n, 4 * axis + j] == pytest.approx(np.sin(angle), abs=1e-6)
                assert positions[n, 4 * axis + 2 + j] == pytest.approx(np.cos(angle), abs=1e-6)
    assert not positions[:, 12:].any()


def test_resize_equals_scipy_inside():
    positions = torch.rand(1, 4 * 6 * 5, 2)
    resized = resize_positions(positions, (4, 6, 5), (8, 6, 10))[0].T.reshape(2, 8, 6, 10).numpy()

    axes = [(np.arange(m) + 0.5) * n / m - 0.5 for m, n in ((8, 4), (6, 6), (10, 5))]
    centres = np.meshgrid(*axes, indexing="ij")
    for channel in range(2):
        volume = positions[0, :, channel].reshape(4, 6, 5).numpy()
        expected = map_coordinates(volume, centres, order=1, mode="nearest")
        assert np.allclose(resized[channel], expected, atol=1e-5)


def test_same_grid_is_untouched():
    positions = torch.rand(1, 24, 6)
    assert resize_positions(positions, (2, 3, 4), (2, 3, 4)) is positions


def test_a_table_moves_to_another_grid_at_its_own_pitch():
    """Every shared token keeps its embedding; the sines and cosines go on beyond the table."""
    grid = (2, 6, 4)
    torch.manual_seed(0)
    start = sincos_positions(grid, 24)
    learned = start + torch.randn_like(start)
    old = learned.view(2, 6, 4, 24)

    smaller = move_positions(learned, grid, (2, 3, 2)).view(2, 3, 2, 24)
    assert torch.allclose(smaller, old[:, 1:4, 1:3], atol=1e-5)

    larger = move_positions(learned, grid, (4, 6, 4)).view(4, 6, 4, 24)
    assert torch.allclose(larger[1:3], old, atol=1e-5)

    # One token before the first: sines of index -1 along z, and the border's learned part.
    frequency = 10000.0 ** (-torch.arange(4) / 4)
    before = torch.cat([(-frequency).sin(), (-frequency).cos()])
    of_border = old[0, ..., :8] - start.view(2, 6, 4, 24)[0, ..., :8]
    assert torch.allclose(larger[0, ..., :8], before + of_border, atol=1e-5)
    assert torch.allclose(larger[0, ..., 8:], old[0, ..., 8:], atol=1e-5)


def test_another_spacing_reads_the_table_between_its_tokens():
    """With tokens half as far apart, every second pair of neighbours has the middle it had."""
    grid = (1, 4, 4)
    learned = sincos_positions(grid, 12) + torch.rand(1, 16, 12)
    finer = move_positions(learned, grid, (1, 4, 4), (1, 0.5, 0.5)).view(4, 4, 12)

    # Along y the new tokens are at 0.75, 1.25, 1.75 and 2.25 of the old ones.
    residual = (learned - sincos_positions(grid, 12)).view(4, 4, 12)
    places = [0.75, 1.25, 1.75, 2.25]
    for i, y in enumerate(places):
        for j, x in enumerate(places):
            expected = torch.zeros(12)
            for row in (int(y), int(y) + 1):
                for column in (int(x), int(x) + 1):
                    share = (1 - abs(y - row)) * (1 - abs(x - column))
                    expected += share * residual[row, column]
            angles = [place * 10000.0 ** (-k / 2) for place in (0, y, x) for k in range(2)]
            waves = []
            for axis in range(3):
                both = angles[2 * axis : 2 * axis + 2]
                waves += [np.sin(both[0]), np.sin(both[1]), np.cos(both[0]), np.cos(both[1])]
            expected += torch.tensor(waves).float()
            assert torch.allclose(finer[i, j], expected, atol=1e-5)
