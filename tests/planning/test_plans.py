"""Plans that match a pretraining, derived from nnU-Net's own."""

from functools import partial

import numpy as np
import pytest
from nnunetv2.preprocessing.normalization.default_normalization_schemes import CTNormalization
from nnunetv2.preprocessing.resampling.default_resampling import compute_new_shape

from alice_nnunet.errors import UserError
from alice_nnunet.planning.plans import (
    GB,
    choose_batch,
    choose_patch,
    configuration_of,
    fit_memory,
    matched_plans,
    sizes_at,
)
from alice_nnunet.finetuning.recipes import RECIPES, training_recipe
from tests.helpers.finetuning import pretraining_checkpoint, stock_plans

SIZES, SPACINGS = (
    [[100, 200, 180], [50, 210, 190], [80, 220, 200]],
    [[3.0, 1.5, 1.5], [5.0, 1.2, 1.2], [4.0, 1.0, 1.0]],
)


def plans(base=None, spacing=None) -> dict:
    return matched_plans(
        base or stock_plans(),
        "MyPlans",
        pretraining_checkpoint(),
        "/c.pth",
        "ab" * 32,
        training_recipe(RECIPES["vit"]),
        spacing or [3.0, 3.0, 3.0],
        [16, 32, 32],
        2,
        SIZES,
        SPACINGS,
    )


def test_inheritance_is_resolved_and_only_3d_goes():
    base = stock_plans()
    base["configurations"] |= {
        "big": {"inherits_from": "3d_fullres", "batch_size": 9},
        "bigger": {"inherits_from": "big", "patch_size": [64, 64, 64]},
        "2d": {"patch_size": [64, 64]},
        "3d_cascade_fullres": {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"},
    }
    bigger = configuration_of(base, "bigger")
    assert (bigger["batch_size"], bigger["patch_size"], bigger["spacing"]) == (
        9,
        [64, 64, 64],
        [3.05, 2.95, 3.0],
    )
    assert "inherits_from" not in bigger
    for name, said in (
        ("2d", "2D or a cascade"),
        ("3d_cascade_fullres", "2D or a cascade"),
        ("3d_lowres", "have 3d_fullres"),
    ):
        with pytest.raises(UserError, match=said):
            configuration_of(base, name)


def test_sizes_are_nnunets():
    expected = [
        compute_new_shape(size, spacing, [1.5, 0.76, 0.76])
        for size, spacing in zip(SIZES, SPACINGS)
    ]
    np.testing.assert_array_equal(sizes_at([1.5, 0.76, 0.76], SIZES, SPACINGS), expected)


TOKEN = (16, 16, 16)


def test_patch_is_limited_by_the_median_volume():
    assert choose_patch(None, [96, 96, 96], np.array([40.0, 200, 96]), TOKEN) == [48, 96, 96]
    assert choose_patch(None, [16, 64, 64], np.array([40.0, 60, 100]), TOKEN) == [16, 64, 64]
    assert choose_patch([32, 48, 64], [96, 96, 96], np.array([10.0, 10, 10]), TOKEN) == [32, 48, 64]
    assert choose_patch(None, [96, 128, 128], np.array([40.0, 200, 70]), (16, 32, 32)) == [
        48,
        128,
        96,
    ]
    for wrong in ([33, 48, 64], [0, 48, 64], [-16, 16, 16]):
        with pytest.raises(UserError, match="multiple of"):
            choose_patch(wrong, [96, 96, 96], np.array([100.0, 100, 100]), TOKEN)


def test_batch_keeps_nnunets_five_percent_rule():
    assert choose_batch(8, [96, 96, 96], 1e9) == 8
    assert choose_batch(8, [96, 96, 96], 96**3 * 100) == 5
    assert choose_batch(8, [96, 96, 96], 96**3) == 2


def test_plans_show_the_network_what_the_pretraining_saw():
    made, base = plans(), stock_plans()
    configuration = made["configurations"]["3d_fullres"]
    assert list(made["configurations"]) == ["3d_fullres"] and made["plans_name"] == "MyPlans"
    assert made["image_reader_writer"] == "NibabelIOWithReorient" and made["transpose_forward"] == [
        0,
        1,
        2,
    ]
    assert (
        configuration["spacing"] == [3.0, 3.0, 3.0]
        and configuration["data_identifier"] == "MyPlans_3d_fullres"
    )
    assert configuration["median_image_size_in_voxels"] == [100.0, 84.0, 76.0]
    assert made["alice"]["input"] == {
        "scale": [1.0],
        "shift": [0.0],
        "low": [0.0],
        "high": [1.0],
        "flip_axes": [],
    }
    assert base == stock_plans()  # the base is left alone
    hu = np.linspace(-1000, 1000, 1000, dtype=np.float32)
    seen = CTNormalization(False, made["foreground_intensity_properties_per_channel"]["0"]).run(
        hu.copy()
    )
    np.testing.assert_allclose(seen, (np.clip(hu, -125, 255) + 125) / 380, atol=1e-6)


def test_a_spacing_of_ones_own_is_written_down_as_accepted():
    made = plans(spacing=[2.0, 0.76, 0.76])
    configuration = made["configurations"]["3d_fullres"]
    assert configuration["spacing"] == made["alice"]["accepted_spacing"] == [2.0, 0.76, 0.76]
    assert (
        configuration["median_image_size_in_voxels"]
        == np.median(sizes_at([2.0, 0.76, 0.76], SIZES, SPACINGS), 0).tolist()
    )
    assert "accepted_spacing" not in plans(spacing=[3.1, 3.0, 2.9])["alice"]  # within the tolerance


def voxels_in(patch: list[int], batch: int) -> float:
    return float(np.prod(patch)) * batch


def test_the_batch_shrinks_to_two_and_then_the_patch_along_its_longest_axis():
    fit, median = (
        partial(fit_memory, [96, 96, 96], 8, np.array([100.0, 400, 400]), TOKEN, memory=voxels_in),
        96**3,
    )
    assert fit(budget=8 * median) == ([96, 96, 96], 8)
    assert fit(budget=5.5 * median) == ([96, 96, 96], 5)
    assert fit(budget=1.7 * median) == ([80, 96, 96], 2)  # z is longest for the median case
    assert fit(budget=1.4 * median) == ([64, 96, 96], 2)
    assert fit(budget=2 * 16**3) == ([16, 16, 16], 2)
    assert fit(budget=5.5 * median, may_change=(False, True)) == ([96, 96, 96], 5)
    assert fit(budget=5.5 * median, may_change=(True, False)) == ([64, 96, 96], 8)
    for budget, may_change in (
        (16**3, (True, True)),
        (median, (False, True)),
        (7 * median, (False, False)),
    ):
        with pytest.raises(UserError, match="smaller -patch or -batch"):
            fit(budget=budget, may_change=may_change)
    with pytest.raises(
        UserError, match="96 x 96 x 96 and a batch of 2 take some 3 GB and only 1.5 GB"
    ):
        fit_memory(
            [96] * 3, 2, np.ones(3), TOKEN, 1.5 * GB, lambda patch, batch: 3 * GB, (False, True)
        )
