"""Settings of a run, from a JSON file and from `--set name=value`, checked by name and by kind."""

import difflib
import json
from dataclasses import dataclass
from pathlib import Path

from alice_nnunet.errors import UserError


@dataclass(frozen=True)
class OptionalValue:
    """An entry in the table of known settings whose value may also be null (None)."""

    example: object


def given_settings(
    file: Path | None, assignments: list[str], known: dict, left_out: tuple[str, ...]
) -> dict:
    """Read the settings of a JSON file, then those of the command line, which win.

    Args:
        file: JSON file of settings, nested or flat, such as the config.json of a run.
        assignments: words `name=value`.
        known: name of every setting, with an example of its kind of value.
        left_out: names in the file that are ignored, because the command line decides them.

    Returns:
        Flat names and values, only those that were given.

    Raises:
        UserError: a name does not exist, a value is of the wrong kind, the file cannot be read.
    """
    given: dict[str, object] = {}

    if file is not None:
        try:
            given |= flatten(json.loads(Path(file).read_text()), left_out)
        except (OSError, ValueError, AttributeError) as error:
            raise UserError(f"{file} is not a readable JSON file of settings ({error})") from None

    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals:
            raise UserError(f"--set expects name=value, got {assignment!r}")
        given[name] = parse(text)

    for name in given:
        if name not in known:
            raise UserError(unknown_setting(name, known))

    return {name: check_kind(name, value, known[name]) for name, value in given.items()}


# What settings are called elsewhere.
ALSO_CALLED = {
    "steps": "iterations",
    "epochs": "iterations",
    "num_iterations": "iterations",
    "max_steps": "iterations",
    "learning_rate": "lr",
    "initial_lr": "lr",
    "wd": "weight_decay",
    "batch": "batch_size",
    "momentum": "ema",
    "patch_size": "crop_size",
    "num_workers": "workers",
    "masking_ratio": "mask_ratio",
    "threshold": "min_score",
}


def unknown_setting(name: str, known: dict) -> str:
    """Text for a name that is not in known: the nearest one that is, or where none is near, all."""
    called = ALSO_CALLED.get(name)
    near = [called] if called in known else difflib.get_close_matches(name, known, n=1)
    if near:
        return f"unknown setting {name!r}: did you mean {near[0]}?"
    return f"unknown setting {name!r}; known settings: {', '.join(sorted(known))}"


def flatten(settings: dict, left_out: tuple[str, ...]) -> dict:
    """Flat names and values of a nested config.json, whose groups hold no name twice."""
    flat: dict[str, object] = {}
    for name, value in settings.items():
        flat |= value if isinstance(value, dict) else {name: value}
    return {name: value for name, value in flat.items() if name not in left_out}


def parse(text: str) -> object:
    """Read text as JSON, `64,192,192` as a list, Python's True, False and None; else as it is."""
    for attempt in (text, f"[{text}]"):
        try:
            return json.loads(attempt)
        except ValueError:
            continue
    return {"True": True, "False": False, "None": None}.get(text, text)


def check_kind(name: str, value: object, example: object) -> object:
    """Convert value to the kind of example, such as list to tuple, or raise UserError."""
    if isinstance(example, OptionalValue):
        if value is None:
            return None
        example = example.example

    if (
        isinstance(example, tuple)
        and isinstance(value, (list, tuple))
        and len(value) == len(example)
    ):
        return tuple(check_kind(name, v, e) for v, e in zip(value, example))

    if isinstance(example, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is type(example):
        return value

    raise UserError(f"setting {name} must be {kind_of(example)}, got {value!r}")


def kind_of(example: object) -> str:
    """The kind of value that example stands for, in words."""
    if not isinstance(example, tuple):
        return type(example).__name__
    if isinstance(example[0], tuple):
        return f"{len(example)} values such as {json.dumps(example)}"
    return f"{len(example)} numbers such as 64,192,192"


def differences(saved: dict, requested: dict, here: str, there: str) -> list[str]:
    """What is requested otherwise than it was saved, as parts of a sentence.

    Args:
        saved: Names and plain values; values of other names count for nothing.
        requested: Names and plain values.
        here: Where the requested values come from, such as "on the command line".
        there: Where the saved ones are, such as "in the saved run".
    """
    return [
        f"{name} is {value!r} {here} but {saved[name]!r} {there}"
        for name, value in requested.items()
        if saved[name] != value
    ]
