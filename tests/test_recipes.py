"""Recipes as data."""

import pytest

from alice_nnunet.errors import UserError
from alice_nnunet.recipes import RECIPES, check_recipe, training_recipe


@pytest.mark.parametrize("encoder, row", [
    ("vit", ("AdamW", 1e-4, 1e-5, 0.9, "cosine", 50, 1000, 8, [96, 96, 96])),
    ("swin", ("AdamW", 4e-4, 1e-5, 0.9, "cosine", 50, 1000, 8, [96, 96, 96])),
    ("nnformer", ("SGD", 1e-2, 3e-5, 0.99, "poly", 40, 1000, 8, [96, 128, 128]))])
def test_table_8(encoder, row):
    recipe, names = RECIPES[encoder], ("optimizer", "learning_rate", "weight_decay", "momentum", "schedule", "warmup_epochs", "epochs",
                                       "batch_size", "patch_size")
    assert tuple(recipe[name] for name in names) == row
    check_recipe(training_recipe(recipe))


def test_warm_up_and_validation_keep_their_share():
    short = training_recipe(RECIPES["vit"], epochs=100, iterations=10)
    assert (short["warmup_epochs"], short["iterations_per_epoch"], short["val_iterations_per_epoch"]) == (5, 10, 2)
    assert training_recipe(RECIPES["vit"], epochs=1, iterations=1)["val_iterations_per_epoch"] == 1
    check_recipe(training_recipe(RECIPES["vit"], epochs=1))


def test_another_learning_rate():
    recipe = training_recipe(RECIPES["vit"], learning_rate=1e-3)
    assert recipe == {**training_recipe(RECIPES["vit"]), "learning_rate": 1e-3}
    check_recipe(recipe)


@pytest.mark.parametrize("change, named", [({"optimizer": "Adam"}, "AdamW, SGD"), ({"schedule": "step"}, "cosine, poly"),
                                           ({"warmup_epochs": 1000}, "1000 of 1000"), ({"nesterov": True}, "nesterov")])
def test_a_recipe_that_cannot_be_followed_is_refused(change, named):
    with pytest.raises(UserError, match=named):
        check_recipe({**training_recipe(RECIPES["vit"]), **change})
