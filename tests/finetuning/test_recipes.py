"""Recipes as data."""

from dataclasses import replace

import pytest

from alice_nnunet.errors import UserError
from alice_nnunet.finetuning.recipes import (
    NNUNET_AUGMENTATION,
    RECIPES,
    SETTINGS,
    VIT,
    changed_recipe,
    recipe_from_entries,
)


@pytest.mark.parametrize(
    "encoder, row",
    [
        ("vit", ("AdamW", 1e-4, 1e-5, 0.9, "cosine", 50, 1000, 8, (96, 96, 96))),
        ("swin", ("AdamW", 4e-4, 1e-5, 0.9, "cosine", 50, 1000, 8, (96, 96, 96))),
        ("nnformer", ("SGD", 1e-2, 3e-5, 0.99, "poly", 40, 1000, 8, (96, 128, 128))),
    ],
)
def test_table_8(encoder, row):
    names = (
        "optimizer",
        "learning_rate",
        "weight_decay",
        "momentum",
        "schedule",
        "warmup_epochs",
        "epochs",
    )

    paper = RECIPES[encoder]
    values = tuple(getattr(paper.recipe, name) for name in names)
    assert (*values, paper.batch_size, paper.patch_size) == row
    assert recipe_from_entries(paper.recipe.as_entries()) == paper.recipe


def test_warm_up_and_validation_keep_their_share():
    short = changed_recipe(VIT, epochs=100, iterations=10)
    assert short.warmup_epochs == 5
    assert (short.iterations_per_epoch, short.val_iterations_per_epoch) == (10, 2)

    shortest = changed_recipe(VIT, epochs=1, iterations=1)
    assert (shortest.warmup_epochs, shortest.val_iterations_per_epoch) == (0, 1)


def test_another_learning_rate():
    assert changed_recipe(VIT, learning_rate=1e-3) == replace(VIT, learning_rate=1e-3)
    assert changed_recipe(VIT) == VIT


@pytest.mark.parametrize(
    "change, named",
    [
        ({"optimizer": "Adam"}, "AdamW, SGD"),
        ({"schedule": "step"}, "cosine, poly"),
        ({"warmup_epochs": 1000}, "1000 of 1000"),
        ({"nesterov": True}, "nesterov"),
    ],
)
def test_a_recipe_that_cannot_be_followed_is_refused(change, named):
    with pytest.raises(UserError, match=named):
        recipe_from_entries({**VIT.as_entries(), **change})


def test_augmentations_of_table_8():
    """Random flip, rotation, intensities shifting; scaling, gaussian blur, mirroring. No others."""
    on = {
        encoder: {name for name, p in paper.recipe.augmentation.items() if p}
        for encoder, paper in RECIPES.items()
    }
    assert on["vit"] == on["swin"] == {"mirroring", "rotation", "shift"}
    assert on["nnformer"] == {"scaling", "blur", "mirroring"}


def test_settings_have_the_last_word():
    recipe = changed_recipe(
        VIT,
        epochs=10,
        learning_rate=1e-3,
        settings={
            "learning_rate": 2e-3,
            "warmup_epochs": 3,
            "layer_decay": 0.8,
            "seed": 4,
            "augmentation": "nnunet",
            "augmentation.blur": 0.9,
        },
    )
    assert (recipe.learning_rate, recipe.warmup_epochs) == (2e-3, 3)
    assert (recipe.layer_decay, recipe.seed) == (0.8, 4)
    assert recipe.augmentation == {**NNUNET_AUGMENTATION, "blur": 0.9}

    one = changed_recipe(VIT, settings={"augmentation.gamma": 0.25})
    assert one.augmentation == {**VIT.augmentation, "gamma": 0.25}

    known = {"optimizer", "momentum", "augmentation.shift", "val_iterations_per_epoch"}
    assert known < set(SETTINGS)
    with pytest.raises(
        UserError, match="no set of augmentations 'monai'; known sets: paper, nnunet, none"
    ):
        changed_recipe(VIT, settings={"augmentation": "monai"})


def test_recipes_of_older_plans_mean_what_they_meant():
    entries = VIT.as_entries()
    for name in ("layer_decay", "frozen_epochs", "seed", "augmentation"):
        del entries[name]

    recipe = recipe_from_entries(entries)
    assert (recipe.layer_decay, recipe.frozen_epochs, recipe.seed) == (1.0, 0, None)
    assert recipe.augmentation == NNUNET_AUGMENTATION


@pytest.mark.parametrize(
    "change, named",
    [
        ({"layer_decay": 0.0}, "layer_decay"),
        ({"layer_decay": 1.5}, "layer_decay"),
        ({"frozen_epochs": 1001}, "frozen_epochs"),
        ({"seed": -1}, "seed"),
        ({"augmentation": {**NNUNET_AUGMENTATION, "blur": 2.0}}, "blur': 2.0"),
        ({"augmentation": {"swirl": 0.1}}, "swirl"),
        ({"momentum": 1.0}, "momentum"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"iterations_per_epoch": 0}, "iterations_per_epoch"),
    ],
)
def test_numbers_out_of_range_are_refused(change, named):
    with pytest.raises(UserError, match=named):
        recipe_from_entries({**VIT.as_entries(), **change})
