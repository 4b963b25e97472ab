"""Settings from assignments and from a JSON file."""

import json

import pytest

from alice_nnunet.errors import UserError
from alice_nnunet.settings.reading import OptionalValue, given_settings

KNOWN = {
    "iterations": 100,
    "lr": 1e-3,
    "encoder": "vit",
    "crop_size": (64, 192, 192),
    "heads": ((1, 2), (3, 4)),
    "warmup": OptionalValue(10),
}


def given(*assignments: str, file=None) -> dict:
    return given_settings(file, list(assignments), KNOWN, ("dataset",))


def test_values_get_the_kind_of_the_setting():
    settings = given("lr=1", "crop_size=32,64,64", "heads=[[1,2],[3,4]]", "encoder=swin")
    assert settings == {
        "lr": 1.0,
        "crop_size": (32, 64, 64),
        "heads": ((1, 2), (3, 4)),
        "encoder": "swin",
    }
    assert type(settings["lr"]) is float


def test_a_name_from_elsewhere_or_with_a_slip_is_answered_with_ours():
    for name, ours in (
        ("steps", "iterations"),
        ("learning_rate", "lr"),
        ("iteratons", "iterations"),
    ):
        with pytest.raises(UserError, match=rf"'{name}': did you mean {ours}\?$"):
            given(f"{name}=2")


def test_an_optional_setting_takes_null_or_a_value_of_its_kind():
    assert given("warmup=null") == {"warmup": None}
    assert given("warmup=3") == {"warmup": 3}
    with pytest.raises(UserError, match="warmup must be int"):
        given("warmup=soon")


def test_the_command_line_wins_over_the_file(tmp_path):
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"dataset": "D", "lr": 0.5, "group": {"iterations": 7}}))
    assert given("lr=0.25", file=file) == {"lr": 0.25, "iterations": 7}


@pytest.mark.parametrize(
    "word, message",
    [
        ("iteratoins=5", "unknown setting 'iteratoins': did you mean iterations?"),
        ("speed=5", "unknown setting 'speed'; known settings: crop_size, encoder"),
        ("iterations", "expects name=value, got 'iterations'"),
        ("iterations=many", "iterations must be int, got 'many'"),
        ("crop_size=1,2", "must be 3 numbers such as 64,192,192"),
        ("heads=1", "must be 2 values such as"),
    ],
)
def test_wrong_settings_are_user_errors(word, message):
    with pytest.raises(UserError) as error:
        given(word)
    assert message in str(error.value)


def test_an_unreadable_file_is_a_user_error(tmp_path):
    file = tmp_path / "config.json"
    file.write_text("[1]")
    with pytest.raises(UserError, match="not a readable JSON file of settings"):
        given(file=file)
