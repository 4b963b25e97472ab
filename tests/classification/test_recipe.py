import pytest

from alice_nnunet.classification.recipe import ClassificationRecipe, read_recipe
from alice_nnunet.errors import UserError

OTHERS = {
    "size": "32,64,64",
    "window": "-160,240",
    "iterations": "2000",
    "warmup_iterations": "20",
    "batch_size": "4",
    "lr": "0.001",
    "momentum": "0.8",
    "weight_decay": "0",
    "validate_every": "50",
    "augment": "false",
    "class_weights": "balanced",
    "frozen": "true",
    "workers": "0",
}


def test_every_setting_can_be_set():
    assert set(OTHERS) == set(ClassificationRecipe.__dataclass_fields__)
    for name, text in OTHERS.items():
        recipe = read_recipe([f"{name}={text}"])
        assert getattr(recipe, name) != getattr(ClassificationRecipe(), name), name


def test_workers_may_be_left_to_the_machine():
    assert read_recipe(["workers=null"]).workers is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("workers=-1", "workers must be 0 or more, got -1"),
        ("workers=two", "setting workers must be int, got 'two'"),
        ("worker=2", "did you mean workers"),
        ("window=240,-160", "window must rise"),
        ("momentum=1", "momentum must be under 1"),
    ],
)
def test_a_wrong_setting_is_named(text, message):
    with pytest.raises(UserError, match=message):
        read_recipe([text])
