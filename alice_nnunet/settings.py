"""Settings of a run from a JSON file and --set name=value, checked by name and kind."""

import json
from pathlib import Path

from alice_nnunet.errors import UserError


def given_settings(
    file: Path | None, assignments: list[str], known: dict, left_out: tuple[str, ...]
) -> dict:
    """Flat names and values: those of the JSON file, then name=value.

    known: {name: an example of the kind of value}. left_out: names in the file that the command line decides.
    Raises UserError for a name that does not exist, a value of the wrong kind, an unreadable file.
    """
    given = {}
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
    for name, value in given.items():
        if name not in known:
            raise UserError(f"unknown setting {name!r}; known: {', '.join(sorted(known))}")
        given[name] = check_kind(name, value, known[name])
    return given


def flatten(settings: dict, left_out: tuple[str, ...]) -> dict:
    """A saved config.json is nested; its groups hold no name twice. left_out: what the command line decides."""
    flat = {}
    for name, value in settings.items():
        flat |= value if isinstance(value, dict) else {name: value}
    return {name: value for name, value in flat.items() if name not in left_out}


def parse(text: str):
    """JSON where it is JSON, else 64,192,192 as a list, else the text."""
    for attempt in (text, f"[{text}]"):
        try:
            return json.loads(attempt)
        except ValueError:
            continue
    return {"True": True, "False": False}.get(text, text)


def check_kind(name: str, value, example):
    """value as the kind of example. Raises UserError where it is of another kind."""
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
    kind = type(example).__name__
    if isinstance(example, tuple):
        kind = (
            f"{len(example)} values such as {json.dumps(example)}"
            if isinstance(example[0], tuple)
            else f"{len(example)} numbers such as 64,192,192"
        )
    raise UserError(f"setting {name} must be {kind}, got {value!r}")
