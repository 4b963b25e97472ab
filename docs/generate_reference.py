"""Write docs/reference/cli.md and settings.md, and the modules in architecture.md, from the source.

Run it after changing an option, a setting or the first line of a module:

    python docs/generate_reference.py

tests/test_reference.py compares the pages with what this script would write.
"""

import argparse
import ast
import dataclasses
import inspect
import json
import re
import textwrap
from collections.abc import Iterable
from importlib.metadata import entry_points
from pathlib import Path
from unittest import mock

from alice_nnunet.errors import CommandParser

DOCS = Path(__file__).parent
REFERENCE = DOCS / "reference"
ARCHITECTURE = DOCS / "explanation" / "architecture.md"
NOTE = "Generated from the source by `python docs/generate_reference.py`. Do not edit this page."

COMMANDS = (  # in the order of their use
    "alice-env",
    "alice-check",
    "alice-preprocess",
    "alice-embed",
    "alice-pretrain",
    "alice-plan",
    "alice-evaluate",
    "alice-classify",
    "alice-features",
    "alice-export",
    "alice-submit",
    "alice-demo",
)
SIZES = ("tiny", "small", "paper")


# ---------------------------------------------------------------------------------------------
# Commands
# ---------------------------------------------------------------------------------------------


class Captured(Exception):
    """Raised in place of parsing, with the parser."""

    def __init__(self, parser: argparse.ArgumentParser):
        super().__init__()
        self.parser = parser


def capture(parser: argparse.ArgumentParser, *arguments, **named) -> None:
    raise Captured(parser)


def parser_of(command: str) -> argparse.ArgumentParser:
    """The parser of an installed command, without running the command."""
    (entry_point,) = entry_points(group="console_scripts", name=command)

    with mock.patch.object(CommandParser, "parse_args", capture):
        try:
            entry_point.load()([])
        except Captured as captured:
            return captured.parser

    raise RuntimeError(f"{command} has not parsed its arguments")


def values_of(action: argparse.Action) -> str:
    """The values of an option as a usage line shows them, such as `Z Y X` or `FOLD [FOLD ...]`."""
    if action.nargs == 0:
        return ""

    if action.metavar is None and action.choices is not None:
        name: str | tuple[str, ...] = "{" + ",".join(map(str, action.choices)) + "}"
    elif action.metavar is None:
        name = action.dest if not action.option_strings else action.dest.upper()
    else:
        name = action.metavar

    if isinstance(name, tuple):
        return " ".join(name)
    if isinstance(action.nargs, int):
        return " ".join([name] * action.nargs)
    if action.nargs == "+":
        return f"{name} [{name} ...]"
    return name


def shown(action: argparse.Action) -> str:
    """An option with its values, such as `-d ID`."""
    return " ".join([*action.option_strings[:1], values_of(action)]).strip()


def help_of(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    """The help text of an option. The number of processes depends on the machine."""
    replaced = {**vars(action), "prog": parser.prog}
    if action.dest == "np":
        replaced["default"] = "the available cores, at most 8"
    return (action.help or "") % replaced


def usage(parser: argparse.ArgumentParser, actions: list[argparse.Action]) -> str:
    """The usage of a command, indented, at most 100 columns wide."""
    words = []
    for action in actions:
        optional = action.option_strings and not action.required
        words.append(f"[{shown(action)}]" if optional else shown(action))

    lines = [f"    {parser.prog}"]
    for word in words:
        if len(lines[-1]) + 1 + len(word) > 100:
            lines.append(" " * (4 + len(parser.prog)))
        lines[-1] += f" {word}"
    return "\n".join(lines)


def command_section(command: str) -> str:
    """What a command does, its usage and its arguments; of one with subcommands those of each."""
    parser = parser_of(command)
    parts = [f"## {command}", *parser_parts(parser)]
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            parts = [*parts[:2]]
            for name, subparser in action.choices.items():
                parts += [f"### {command} {name}", *parser_parts(subparser)]
    return "\n\n".join(parts)


def parser_parts(parser: argparse.ArgumentParser) -> list[str]:
    """Description, usage, and the table of arguments if there are any."""
    actions = [action for action in parser._actions if action.dest != "help"]
    options = [action for action in actions if action.option_strings]
    positionals = [action for action in actions if not action.option_strings]

    description = textwrap.fill(str(parser.description), 100)
    parts = [description, usage(parser, [*options, *positionals])]
    if actions:
        rows = [(f"`{shown(a)}`", help_of(parser, a)) for a in [*positionals, *options]]
        parts.append(table(("argument", "meaning"), rows))
    return parts


def cli_page() -> str:
    """docs/reference/cli.md."""
    intro = (
        "Every command also has `-h`. Wrong use, and everything that a user can mend, ends in one\n"
        "line on stderr and exit code 2; Ctrl-C ends with 130. `-d` takes the ID or the name of a\n"
        "dataset. The names and values of `--set` are in [settings](settings.md)."
    )
    sections = [command_section(command) for command in COMMANDS]
    return "\n\n".join(["# Commands", NOTE, intro, *sections]) + "\n"


# ---------------------------------------------------------------------------------------------
# Settings
# ---------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Comment:
    """What the source says about a field. group: what it says about several fields together."""

    meaning: str = ""
    group: str = ""


@dataclasses.dataclass(frozen=True)
class Setting:
    """One row of a table."""

    name: str
    default: str
    comment: Comment


def described(cls: type, section: str) -> dict[str, str]:
    """The entries of a section (Args or Attributes) of a docstring in Google's form."""
    lines = (inspect.getdoc(cls) or "").splitlines()
    if f"{section}:" not in lines:
        return {}

    entries: dict[str, str] = {}
    for line in lines[lines.index(f"{section}:") + 1 :]:
        if line and not line.startswith(" "):
            break
        start = re.match(r"    (\w+): (.*)", line)
        if start:
            name = start[1]
            entries[name] = start[2]
        elif line.strip():
            entries[name] += f" {line.strip()}"
    return entries


def commented(cls: type) -> dict[str, Comment]:
    """The comments of a dataclass, by field.

    A comment behind a field, or directly above it, is about the field. A comment after an empty
    line is about all fields up to the next empty line.
    """
    comments: dict[str, Comment] = {}
    group = ""
    above = ""
    after_empty_line = True

    for line in inspect.getsource(cls).splitlines():
        text = line.strip()
        field = re.match(r"(\w+): [^#]*(?:# (.*))?$", text)

        if not text:
            group = ""
            above = ""
            after_empty_line = True
        elif text.startswith("# ") and after_empty_line:
            group = f"{group} {text[2:]}".strip()
        elif text.startswith("# "):
            above = f"{above} {text[2:]}".strip()
        elif field and field[1] in cls.__dataclass_fields__:
            meaning = " ".join(part for part in (above, field[2]) if part)
            comments[field[1]] = Comment(meaning, group)
            above = ""
            after_empty_line = False

    return comments


def settings_of(cls: type, left_out: Iterable[str] = ()) -> list[Setting]:
    """The fields of a config with default and meaning, from its docstring or its comments."""
    attributes = described(cls, "Attributes")
    comments = commented(cls)

    settings = []
    for field in dataclasses.fields(cls):
        if field.name in left_out:
            continue

        comment = comments.get(field.name, Comment())
        if field.name in attributes:
            comment = Comment(attributes[field.name])
        settings.append(Setting(field.name, typed(field.default), comment))

    return settings


def typed(value: object) -> str:
    """A value as it is typed after `--set name=`."""
    if value is None or value is dataclasses.MISSING or value == ():
        return ""
    if isinstance(value, str):
        return f"`{value}`"
    if isinstance(value, tuple) and not isinstance(value[0], tuple):
        return f"`{','.join(map(str, value))}`"
    return f"`{json.dumps(value)}`"


def settings_table(settings: list[Setting]) -> str:
    """A row for each setting, and one before each group."""
    rows = []
    group = ""

    for setting in settings:
        comment = setting.comment
        if comment.group and comment.group != group:
            rows.append((f"*{comment.group}*", "", ""))
        group = comment.group
        rows.append((f"`{setting.name}`", setting.default, comment.meaning))

    return table(("name", "default", "meaning"), rows)


def preset_table(presets: dict[str, dict[str, object]]) -> str:
    """Rows are names, columns the sizes; empty where a preset keeps the default."""
    names = dict.fromkeys(name for values in presets.values() for name in values)
    rows = [(f"`{name}`", *(typed(presets[size].get(name)) for size in SIZES)) for name in names]
    return table(("name", *SIZES), rows)


def encoder_sections() -> list[str]:
    """For each encoder its arguments and presets."""
    from alice_nnunet.model.encoders.registry import ENCODERS
    from alice_nnunet.model.presets import PRESETS

    sections = []
    for name in sorted(ENCODERS):
        meanings = described(ENCODERS[name], "Args")
        presets = {
            size: {
                **preset.encoder,
                "crop_size": preset.crops.size,
                "spacing": preset.crops.spacing,
                **preset.method,
                **preset.run,
            }
            for size, preset in PRESETS[name].items()
        }
        names = ["crop_size", *PRESETS[name]["paper"].encoder]
        arguments = [(f"`{argument}`", meanings.get(argument, "")) for argument in names]

        sections += [
            f"### Encoder {name}",
            table(("name", "meaning"), arguments),
            "Presets. An empty cell stands for the default above. `spacing` (mm) is used when the\n"
            "dataset is preprocessed; it is not a setting.",
            preset_table(presets),
        ]
    return sections


def embed_sections() -> list[str]:
    from alice_nnunet.matcher.network import SamNet
    from alice_nnunet.matcher.presets import PRESETS
    from alice_nnunet.pretrain.embedding.config import EmbedConfig

    presets = {size: {**preset.network, **preset.run} for size, preset in PRESETS.items()}
    meanings = described(SamNet, "Args")
    network = [(f"`{name}`", meanings.get(name, "")) for name in PRESETS["paper"].network]

    return [
        "## alice-embed",
        "`--set NAME=VALUE`, or a JSON file with `-config`.",
        settings_table(settings_of(EmbedConfig, ("dataset", "preset", "network"))),
        "### Network of the matcher",
        table(("name", "meaning"), network),
        "### Presets of the matcher",
        preset_table(presets),
    ]


def recipe_sections() -> list[str]:
    """What alice-plan --set takes, with the recipe of each encoder."""
    from alice_nnunet.finetuning.recipes import NNUNET_AUGMENTATION, RECIPES, Recipe

    encoders = ("vit", "swin", "nnformer")
    meanings = described(Recipe, "Attributes")

    rows = []
    for field in dataclasses.fields(Recipe):
        values = ["`paper`"] * len(encoders)
        if field.name != "augmentation":
            values = [typed(getattr(RECIPES[name].recipe, field.name)) for name in encoders]
        rows.append((f"`{field.name}`", *values, meanings[field.name]))

    probabilities = [
        (
            f"`augmentation.{name}`",
            *(f"{RECIPES[encoder].recipe.augmentation[name]:g}" for encoder in encoders),
            f"{NNUNET_AUGMENTATION[name]:g}",
        )
        for name in NNUNET_AUGMENTATION
    ]
    sizes = [
        ("patch size", *(typed(tuple(RECIPES[name].patch_size)) for name in encoders)),
        ("batch size", *(str(RECIPES[name].batch_size) for name in encoders)),
    ]

    return [
        "## alice-plan",
        "`--set NAME=VALUE`. The defaults are those of the paper's Table 8. `augmentation` is\n"
        "`paper`, `nnunet` or `none`.",
        table(("name", *encoders, "meaning"), rows),
        "### Probabilities of the augmentations",
        table(("name", *(f"paper, {name}" for name in encoders), "nnunet"), probabilities),
        "### Patch and batch",
        "Set with `-patch` and `-batch`.",
        table(("", *encoders), sizes),
    ]


def classification_sections() -> list[str]:
    """What alice-classify train --set takes."""
    from alice_nnunet.classification.recipe import ClassificationRecipe

    return [
        "## alice-classify",
        "`--set NAME=VALUE` of `alice-classify train`. The defaults are those of the paper's\n"
        "supplement, B.2 and B.3.",
        settings_table(settings_of(ClassificationRecipe)),
    ]


def method_sections() -> list[str]:
    """For each method of pretraining its settings."""
    from alice_nnunet.model.pretraining.registry import DEFAULT, METHODS, settings_class

    sections = [
        "### Method alice",
        "Why these defaults depart from the paper:\n"
        "[differences from the paper](../explanation/differences-from-the-paper.md).",
        settings_table(settings_of(settings_class(DEFAULT))),
    ]
    for name in METHODS:
        if name == DEFAULT:
            continue
        kind = settings_class(name)
        sections += [
            f"### Method {name}",
            f"{METHODS[name].title}. See [methods](../explanation/methods.md).",
            settings_table(settings_of(kind)),
        ]
        if kind.run:
            changed = ", ".join(f"`{n}={value:g}`" for n, value in kind.run.items())
            sections.append(f"It also changes the run: {changed}.")
    return sections


def settings_page() -> str:
    """docs/reference/settings.md."""
    from alice_nnunet.pretrain.training.config import PretrainConfig

    decided = (
        "dataset",
        "encoder",
        "preset",
        "encoder_arguments",
        "windowed",
        "method_name",
        "method",
    )
    parts = [
        "# Settings",
        NOTE,
        "Values are typed as JSON (`0.1`, `true`, `null`), sizes as `64,192,192` in the order\n"
        "(z, y, x). A preset (`-preset`) changes the defaults, a JSON file (`-config`) changes\n"
        "those, and `--set` has the last word. An unknown name is an error that suggests the\n"
        "nearest one.",
        "## alice-pretrain",
        "### Run",
        settings_table(settings_of(PretrainConfig, decided)),
        *method_sections(),
        *encoder_sections(),
        *embed_sections(),
        *recipe_sections(),
        *classification_sections(),
    ]
    return "\n\n".join(parts) + "\n"


# ---------------------------------------------------------------------------------------------
# Modules
# ---------------------------------------------------------------------------------------------

START = "<!-- modules -->"  # everything below it in architecture.md is generated
SOURCES = ("alice_nnunet", "pretrain", "trainers", "benchmarks")


def summary_of(module: Path) -> str:
    """The first paragraph of a module's docstring."""
    docstring = ast.get_docstring(ast.parse(module.read_text(encoding="utf-8"))) or ""
    return docstring.split("\n\n")[0]


def module_tables() -> str:
    """A table for each folder of the source, a line for each module."""
    repository = DOCS.parent
    folders: dict[Path, list[tuple[str, str]]] = {}

    for source in SOURCES:
        for module in sorted((repository / source).rglob("*.py")):
            summary = summary_of(module)
            if module.name != "__init__.py" or summary:
                rows = folders.setdefault(module.parent.relative_to(repository), [])
                rows.append((f"`{module.name}`", summary))

    parts = []
    for folder in sorted(folders, key=lambda f: (SOURCES.index(f.parts[0]), f)):
        parts += [f"### {folder.as_posix()}/", table(("module", "content"), folders[folder])]
    return "\n\n".join(parts)


def architecture_page() -> str:
    """docs/explanation/architecture.md with today's modules."""
    written, _, _ = ARCHITECTURE.read_text(encoding="utf-8").partition(START)
    note = NOTE.replace("this page", "this section")
    return f"{written}{START}\n\n{note}\n\n{module_tables()}\n"


# ---------------------------------------------------------------------------------------------


def table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """A table in Markdown."""
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(map(cell, line)) + " |" for line in lines)


def cell(text: str) -> str:
    """Text for a cell of a table."""
    return text.replace("|", "\\|").replace("\n", " ")


def pages() -> dict[Path, str]:
    """The generated pages and what they should say."""
    return {
        REFERENCE / "cli.md": cli_page(),
        REFERENCE / "settings.md": settings_page(),
        ARCHITECTURE: architecture_page(),
    }


if __name__ == "__main__":
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")
        print(f"wrote {path}")
