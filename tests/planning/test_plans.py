"""Plans that match a pretraining, derived from nnU-Net's own."""

import numpy as np
from nnunetv2.preprocessing.normalization.default_normalization_schemes import CTNormalization

from alice_nnunet.finetuning.block import make_block
from alice_nnunet.finetuning.recipes import RECIPES
from alice_nnunet.planning.choices import PlanChoice, PlanChoices
from alice_nnunet.planning.labeled_dataset import LabeledDataset
from alice_nnunet.planning.plans import matched_plans, matched_statistics
from alice_nnunet.planning.sizes import sizes_at
from tests.helpers.finetuning import pretrained_encoder, stock_plans

SIZES = [[100, 200, 180], [50, 210, 190], [80, 220, 200]]
SPACINGS = [[3.0, 1.5, 1.5], [5.0, 1.2, 1.2], [4.0, 1.0, 1.0]]


def plans(base: dict | None = None, spacing: tuple = (3.0, 3.0, 3.0)) -> dict:
    """Plans with a patch of 16 x 32 x 32 and a batch of 2."""
    base = base or stock_plans()
    encoder = pretrained_encoder()
    schemes = ["CTNormalization"]
    statistics = matched_statistics(
        encoder, schemes, base["foreground_intensity_properties_per_channel"]
    )
    block = make_block(encoder, schemes, statistics, RECIPES["vit"].recipe, flip_axes=[])

    choices = PlanChoices(
        spacing=PlanChoice(list(spacing), ""),
        patch=PlanChoice([16, 32, 32], ""),
        batch=PlanChoice(2, ""),
        memory=PlanChoice(0, ""),
        median_size=np.median(sizes_at(list(spacing), SIZES, SPACINGS), 0),
    )
    dataset = LabeledDataset("Dataset007_Body", {}, SIZES, SPACINGS, None, 2, base)
    return matched_plans(dataset, "MyPlans", block, statistics, choices)


def test_plans_show_the_network_what_the_pretraining_saw():
    base = stock_plans()
    made = plans(base)
    configuration = made["configurations"]["3d_fullres"]
    assert list(made["configurations"]) == ["3d_fullres"] and made["plans_name"] == "MyPlans"
    assert made["image_reader_writer"] == "NibabelIOWithReorient"
    assert made["transpose_forward"] == [0, 1, 2]
    assert configuration["spacing"] == [3.0, 3.0, 3.0]
    assert configuration["data_identifier"] == "MyPlans_3d_fullres"
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
    statistics = made["foreground_intensity_properties_per_channel"]["0"]
    seen = CTNormalization(False, statistics).run(hu.copy())
    np.testing.assert_allclose(seen, (np.clip(hu, -125, 255) + 125) / 380, atol=1e-6)


def test_another_spacing():
    spacing = [2.0, 0.76, 0.76]
    configuration = plans(spacing=spacing)["configurations"]["3d_fullres"]
    assert configuration["spacing"] == spacing

    median = np.median(sizes_at(spacing, SIZES, SPACINGS), 0)
    assert configuration["median_image_size_in_voxels"] == median.tolist()
