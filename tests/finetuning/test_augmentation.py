"""Recipes' probabilities in nnU-Net's own pipeline."""

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from alice_nnunet.finetuning.augmentation import IntensityShift, with_probabilities
from alice_nnunet.finetuning.recipes import (
    FLIP_ROTATION_SHIFT,
    NNUNET_AUGMENTATION,
    NO_AUGMENTATION,
    SCALING_BLUR_MIRRORING,
)


def nnunets(patch=(16, 32, 32), flat: bool = False) -> ComposeTransforms:
    return nnUNetTrainer.get_training_transforms(
        np.array(patch), (-0.5, 0.5), [[1, 1, 1]], (0, 1, 2), flat, [True]
    )


def kinds(pipeline: ComposeTransforms) -> dict:
    """Name of each transform -> its probability, both of the affine one."""
    found = {}
    for transform in pipeline.transforms:
        if isinstance(transform, SpatialTransform):
            found["Spatial"] = (transform.p_rotation, transform.p_scaling)
        elif isinstance(transform, RandomTransform):
            found.setdefault(type(transform.transform).__name__, []).append(
                transform.apply_probability
            )
    return found


def test_nnunets_own_probabilities_are_the_ones_written_down():
    changed = kinds(with_probabilities(nnunets(), NNUNET_AUGMENTATION, [1.0]))
    assert changed.pop("IntensityShift") == [0] and changed.pop("MirrorTransform") == [1]
    assert changed == kinds(nnunets())


@pytest.mark.parametrize(
    "recipe, on",
    [
        (
            FLIP_ROTATION_SHIFT,
            {"Spatial": (0.2, 0), "MirrorTransform": [1.0], "IntensityShift": [0.5]},
        ),
        (
            SCALING_BLUR_MIRRORING,
            {"Spatial": (0, 0.2), "MirrorTransform": [1.0], "GaussianBlurTransform": [0.2]},
        ),
        (
            {**NO_AUGMENTATION, "inverted_gamma": 0.7},
            {"Spatial": (0, 0), "GammaTransform": [0.7, 0]},
        ),
    ],
)
def test_a_recipe_switches_on_what_it_names_and_nothing_else(recipe, on):
    found = {
        kind: values
        for kind, values in kinds(with_probabilities(nnunets(), recipe, [1.0])).items()
        if any(values) or kind == "Spatial"
    }
    assert found == on


@pytest.mark.parametrize("flat", [False, True])
def test_without_augmentation_a_patch_is_only_cropped(flat):
    image = torch.rand(1, 16, 32, 32)
    labels = torch.randint(-1, 3, (1, 16, 32, 32))
    pipeline = with_probabilities(nnunets(flat=flat), NO_AUGMENTATION, [1.0])
    result = pipeline(image=image.clone(), segmentation=labels.clone())

    inside = labels >= 0  # use_mask_for_norm: outside it the image is 0
    assert torch.equal(result["image"], image * inside)
    assert torch.equal(result["segmentation"][0], labels.clamp(min=0))

    # all at once run too
    everything = dict.fromkeys(NO_AUGMENTATION, 1.0)
    with_probabilities(nnunets(flat=flat), everything, [1.0])(image=image, segmentation=labels)


def test_shift_is_a_tenth_of_the_window_in_the_plans_own_units():
    """Plans with intensities of HU / 41 and a window of 380 HU: a tenth of it is 38 / 41."""
    torch.manual_seed(0)
    scale = [41 / 380, 1.0]
    pipeline = with_probabilities(nnunets(), {**NO_AUGMENTATION, "shift": 1.0}, scale)
    (shift,) = (
        t.transform
        for t in pipeline.transforms
        if isinstance(t, RandomTransform) and isinstance(t.transform, IntensityShift)
    )

    image = torch.rand(2, 3, 4, 5)
    drawn = torch.stack([(shift(image=image)["image"] - image) for _ in range(500)])

    # one number for a channel
    torch.testing.assert_close(drawn.amax((2, 3, 4)), drawn.amin((2, 3, 4)), atol=1e-6, rtol=0)
    np.testing.assert_allclose(drawn.abs().amax((0, 2, 3, 4)), [38 / 41, 0.1], rtol=0.02)
    assert drawn.mean().abs() < 0.05


def test_a_transform_that_no_recipe_names_is_an_error():
    with pytest.raises(RuntimeError, match=r"ComposeTransforms.*do not name"):
        with_probabilities(
            ComposeTransforms([*nnunets().transforms, RandomTransform(ComposeTransforms([]), 0.1)]),
            NO_AUGMENTATION,
            [1.0],
        )
