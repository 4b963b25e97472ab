import numpy as np
import pytest

from alice_nnunet.geometry import ceil_to, crop_around, grid_of, overlap, shift_inside


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


def test_the_shift_leaves_the_least_outside_and_is_the_smallest_that_does():
    size = (4, 7, 1)

    def outside(axis: int, moved: int, centres, image_sizes) -> int:
        """Voxels of both crops outside their images along an axis."""
        total = 0
        for centre, image in zip(centres, image_sizes):
            there = [c + moved for c in centre]
            total += size[axis] - overlap(there, size, image).size[axis]
        return total

    rng = np.random.default_rng(0)
    for image_sizes in rng.integers(2, 13, (60, 2, 3)):
        centres = tuple(tuple(int(rng.integers(0, n)) for n in image) for image in image_sizes)
        shift = shift_inside(centres, image_sizes, size)
        for axis in range(3):
            lost = {moved: outside(axis, moved, centres, image_sizes) for moved in range(-20, 21)}
            least = min(lost.values())
            assert lost[shift[axis]] == least
            assert abs(shift[axis]) == min(abs(moved) for moved in lost if lost[moved] == least)


def test_crops_that_fit_stay_and_crops_longer_than_the_image_hold_it():
    assert shift_inside(((5, 5, 5), (6, 6, 6)), ((12,) * 3, (12,) * 3), (4, 4, 4)) == (0, 0, 0)
    shift = shift_inside(((1, 9, 5), (1, 9, 5)), ((10,) * 3, (10,) * 3), (20, 20, 20))
    for axis in range(3):
        first = (1, 9, 5)[axis] + shift[axis] - 10
        assert first <= 0 and first + 20 >= 10


def test_grids():
    assert grid_of((64, 192, 192), (16, 16, 16)) == (4, 12, 12) and ceil_to(
        (1, 16, 17), (16, 16, 16)
    ) == (16, 16, 32)
    for size in ((30, 32, 32), (0, 16, 16)):
        with pytest.raises(ValueError, match="multiple of"):
            grid_of(size, (16, 16, 16))
