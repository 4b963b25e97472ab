import numpy as np
import pytest

from alice_nnunet.geometry import ceil_to, crop_around, grid_of


def test_crop_inside_is_a_slice_with_the_centre_in_the_middle():
    image = np.arange(2 * 10 * 11 * 12, dtype=np.float32).reshape(2, 10, 11, 12)
    crop = crop_around(image, (5, 5, 5), (4, 6, 2))
    assert np.array_equal(crop, image[:, 3:7, 2:8, 4:6]) and np.array_equal(
        crop[:, 2, 3, 1], image[:, 5, 5, 5]
    )


@pytest.mark.parametrize("centre", [(0, 0, 0), (9, 10, 11), (-3, 5, 5), (100, 0, 0), (4, 20, -7)])
@pytest.mark.parametrize("size", [(4, 6, 2), (32, 32, 32)])
def test_crop_outside_is_zero(centre, size):
    image = np.random.default_rng(0).random((1, 10, 11, 12), np.float32)
    far = 150
    padded = np.pad(image, ((0, 0), *[(far, far)] * 3))
    start = [c + far - s // 2 for c, s in zip(centre, size)]
    expected = padded[(slice(None), *[slice(a, a + s) for a, s in zip(start, size)])]
    crop = crop_around(image, centre, size)
    assert crop.shape == (1, *size) and np.array_equal(crop, expected)


def test_grids():
    assert grid_of((64, 192, 192), (16, 16, 16)) == (4, 12, 12) and ceil_to(
        (1, 16, 17), (16, 16, 16)
    ) == (16, 16, 32)
    for size in ((30, 32, 32), (0, 16, 16)):
        with pytest.raises(ValueError, match="multiple of"):
            grid_of(size, (16, 16, 16))
