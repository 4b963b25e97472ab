"""Recipes as data."""

import pytest

from alice_nnunet.errors import UserError
from alice_nnunet.finetuning.recipes import (
    NNUNET_AUGMENTATION,
    RECIPES,
    check_recipe,
    full_recipe,
    setting_names,
    training_recipe,
)


@pytest.mark.parametrize(
    "encoder, row",
    [
        ("vit", ("AdamW", 1e-4, 1e-5, 0.9, "cosine", 50, 1000, 8, [96, 96, 96])),
        ("swin", ("AdamW", 4e-4, 1e-5, 0.9, "cosine", 50, 1000, 8, [96, 96, 96])),
        ("nnformer", ("SGD", 1e-2, 3e-5, 0.99, "poly", 40, 1000, 8, [96, 128, 128])),
    ],
)
def test_table_8(encoder, row):
    recipe, names = (
        RECIPES[encoder],
        (
            "optimizer",
            "learning_rate",
            "weight_decay",
            "momentum",
            "schedule",
            "warmup_epochs",
            "epochs",
            "batch_size",
            "patch_size",
        ),
    )
    assert tuple(recipe[name] for name in names) == row
    check_recipe(training_recipe(recipe))


def test_warm_up_and_validation_keep_their_share():
    short = training_recipe(RECIPES["vit"], epochs=100, iterations=10)
    assert (
        short["warmup_epochs"],
        short["iterations_per_epoch"],
        short["val_iterations_per_epoch"],
    ) == (5, 10, 2)
    assert training_recipe(RECIPES["vit"], epochs=1, iterations=1)["val_iterations_per_epoch"] == 1
    check_recipe(training_recipe(RECIPES["vit"], epochs=1))


def test_another_learning_rate():
    recipe = training_recipe(RECIPES["vit"], learning_rate=1e-3)
    assert recipe == {**training_recipe(RECIPES["vit"]), "learning_rate": 1e-3}
    check_recipe(recipe)


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
        check_recipe({**training_recipe(RECIPES["vit"]), **change})


def test_augmentations_of_table_8():
    """Random flip, rotation, intensities shifting; scaling, gaussian blur, mirroring. And no others."""
    on = {
        encoder: {name for name, p in recipe["augmentation"].items() if p}
        for encoder, recipe in RECIPES.items()
    }
    assert on["vit"] == on["swin"] == {"mirroring", "rotation", "shift"} and on["nnformer"] == {
        "scaling",
        "blur",
        "mirroring",
    }


def test_settings_have_the_last_word():
    recipe = training_recipe(
        RECIPES["vit"],
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
    assert (
        recipe["learning_rate"],
        recipe["warmup_epochs"],
        recipe["layer_decay"],
        recipe["seed"],
    ) == (2e-3, 3, 0.8, 4)
    assert recipe["augmentation"] == {**NNUNET_AUGMENTATION, "blur": 0.9}
    one = training_recipe(RECIPES["vit"], settings={"augmentation.gamma": 0.25})["augmentation"]
    assert one == {**RECIPES["vit"]["augmentation"], "gamma": 0.25}
    assert set(setting_names(RECIPES["vit"])) > {
        "optimizer",
        "momentum",
        "augmentation.shift",
        "val_iterations_per_epoch",
    }
    with pytest.raises(
        UserError, match="no set of augmentations 'monai'; known: paper, nnunet, none"
    ):
        training_recipe(RECIPES["vit"], settings={"augmentation": "monai"})


def test_recipes_of_older_plans_mean_what_they_meant():
    old = {
        key: value
        for key, value in training_recipe(RECIPES["vit"]).items()
        if key not in ("layer_decay", "frozen_epochs", "seed", "augmentation")
    }
    check_recipe(old)
    full = full_recipe(old)
    assert (full["layer_decay"], full["frozen_epochs"], full["seed"]) == (1.0, 0, None) and full[
        "augmentation"
    ] == NNUNET_AUGMENTATION


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
        check_recipe({**training_recipe(RECIPES["vit"]), **change})
