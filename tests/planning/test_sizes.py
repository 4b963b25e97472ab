"""Patch and batch sizes."""

from functools import partial

import numpy as np
import pytest
from nnunetv2.preprocessing.resampling.default_resampling import compute_new_shape

from alice_nnunet.errors import UserError
from alice_nnunet.memory import GB
from alice_nnunet.planning.sizes import (
    Reduction,
    batch_within,
    check_patch,
    fit_memory,
    patch_within,
    sizes_at,
)

TOKEN = (16, 16, 16)


def test_sizes_are_nnunets():
    sizes = [[100, 200, 180], [50, 210, 190], [80, 220, 200]]
    spacings = [[3.0, 1.5, 1.5], [5.0, 1.2, 1.2], [4.0, 1.0, 1.0]]
    target = [1.5, 0.76, 0.76]

    expected = [compute_new_shape(size, spacing, target) for size, spacing in zip(sizes, spacings)]
    np.testing.assert_array_equal(sizes_at(target, sizes, spacings), expected)


@pytest.mark.parametrize(
    "largest, median, unit, patch",
    [
        ((96, 96, 96), (40, 200, 96), TOKEN, [48, 96, 96]),
        ((16, 64, 64), (40, 60, 100), TOKEN, [16, 64, 64]),
        ((96, 128, 128), (40, 200, 70), (16, 32, 32), [48, 128, 96]),
    ],
)
def test_patch_is_limited_by_the_median_volume(largest, median, unit, patch):
    assert patch_within(largest, np.array(median, float), unit) == patch


def test_a_patch_is_a_multiple_of_the_unit():
    check_patch([32, 48, 64], TOKEN)
    for wrong in ([33, 48, 64], [0, 48, 64], [-16, 16, 16]):
        with pytest.raises(UserError, match="multiple of"):
            check_patch(wrong, TOKEN)


def test_batch_keeps_nnunets_five_percent_rule():
    assert batch_within(8, [96, 96, 96], 1e9) == 8
    assert batch_within(8, [96, 96, 96], 96**3 * 100) == 5
    assert batch_within(8, [96, 96, 96], 96**3) == 2


def voxels_in(patch: list[int], batch: int) -> float:
    return float(np.prod(patch)) * batch


def fit(budget: float, patch: bool = True, batch: bool = True) -> tuple[list[int], int]:
    """Reduce eight patches of 96 x 96 x 96, where one voxel is one byte. budget: in patches."""
    reduction = Reduction(TOKEN, np.array([100.0, 400, 400]), patch, batch)
    return fit_memory([96, 96, 96], 8, budget * 96**3, voxels_in, reduction)


def test_the_batch_shrinks_to_two_and_then_the_patch_along_its_longest_axis():
    assert fit(8) == ([96, 96, 96], 8)
    assert fit(5.5) == ([96, 96, 96], 5)
    assert fit(1.7) == ([80, 96, 96], 2)  # z is longest for the median case
    assert fit(1.4) == ([64, 96, 96], 2)
    assert fit(2.01 * (16 / 96) ** 3) == ([16, 16, 16], 2)


def test_what_is_given_is_not_reduced():
    assert fit(5.5, patch=False) == ([96, 96, 96], 5)
    assert fit(5.5, batch=False) == ([64, 96, 96], 8)


def test_nothing_fits():
    for refused in (
        partial(fit, (16 / 96) ** 3),
        partial(fit, 1, patch=False),
        partial(fit, 7, patch=False, batch=False),
    ):
        with pytest.raises(UserError, match="smaller -patch or -batch"):
            refused()

    with pytest.raises(
        UserError, match=r"96 x 96 x 96 and a batch of 2 need about 3 GB and only 1.5 GB"
    ):
        fit_memory(
            [96] * 3,
            2,
            1.5 * GB,
            lambda patch, batch: 3 * GB,
            Reduction(TOKEN, np.ones(3), patch=False),
        )
