"""The reference pages are what docs/generate_reference.py writes from the source today."""

import dataclasses
import re
import runpy
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from alice_nnunet.model.pretraining.settings import AliceSettings
from alice_nnunet.pretrain.embedding.config import EmbedConfig
from alice_nnunet.pretrain.training.config import PretrainConfig

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def generator() -> dict:
    """The names that the script defines."""
    return runpy.run_path(str(REPOSITORY / "docs" / "generate_reference.py"))


@pytest.mark.parametrize("name", ["cli.md", "settings.md", "architecture.md"])
def test_the_reference_is_what_the_code_says(generator, name):
    expected = {path.name: (path, text) for path, text in generator["pages"]().items()}
    path, text = expected[name]
    assert path.read_text(encoding="utf-8") == text, (
        f"{path} is out of date: run python docs/generate_reference.py"
    )


def test_every_installed_command_is_in_the_reference(generator):
    installed = {point.name for point in entry_points(group="console_scripts")}
    assert {name for name in installed if name.startswith("alice-")} == set(generator["COMMANDS"])


@pytest.mark.parametrize("config", [PretrainConfig, AliceSettings, EmbedConfig])
def test_every_setting_says_what_it_means(generator, config):
    for setting in generator["settings_of"](config):
        assert setting.comment.meaning, setting.name


def test_every_variable_of_ours_is_described():
    described = (REPOSITORY / "docs" / "reference" / "files.md").read_text()
    for folder in ("alice_nnunet", "pretrain", "trainers"):
        for file in (REPOSITORY / folder).rglob("*.py"):
            for name in re.findall(r"\balice_(?:weights|accept_\w+)\b", file.read_text()):
                assert f"`{name}`" in described, f"{name} of {file}"


def test_comments_and_docstrings_are_read(generator, tmp_path):
    """The two ways in which a config describes its fields."""

    @dataclasses.dataclass
    class Example:
        """An example.

        Attributes:
            first: the first,
                in two lines.
        """

        first: int = 1

        # A group
        second: int = 2  # the second
        # Above it.
        third: int = 3  # and behind it

        fourth: int = 4

    comments = {setting.name: setting.comment for setting in generator["settings_of"](Example)}
    assert comments["first"].meaning == "the first, in two lines."
    assert comments["second"].meaning == "the second"
    assert comments["second"].group == "A group"
    assert comments["third"].meaning == "Above it. and behind it"
    assert comments["fourth"].meaning == ""
    assert comments["fourth"].group == ""
