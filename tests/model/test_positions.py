import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates

from alice_nnunet.model.positions import resize_positions, sincos_positions


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
