"""What the code imports is declared in setup.py, and only that."""

import ast
import runpy
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
CODE = ("alice_nnunet", "pretrain", "trainers")

# Declared for other packages. setup.py says why.
NOT_IMPORTED = {"acvl-utils", "dynamic-network-architectures", "tensorboard", "setuptools"}
# Run by people and by .ci/run, or by pytest itself.
TOOLS = {"pytest-xdist", "ruff", "mypy", "codespell"}


def imported(folder: Path) -> set[str]:
    """Top-level names of other projects that the files in folder import, also inside functions."""
    names = set()
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names.add(node.module.split(".")[0])
    ours = {"alice_nnunet", "tests", *(path.stem for path in (ROOT / "benchmarks").rglob("*.py"))}
    return names - set(sys.stdlib_module_names) - ours


def distributions(names: set[str]) -> set[str]:
    """The distributions that bring modules, by their names on the package index."""
    known = packages_distributions()
    return {canonicalize_name(known[name][0]) for name in names}


def declared(variable: str) -> set[str]:
    """Names of the distributions in a list of setup.py."""
    requirements = runpy.run_path(str(ROOT / "setup.py"))[variable]
    return {canonicalize_name(Requirement(text).name) for text in requirements}


def test_what_the_package_imports_is_declared_and_only_that():
    needed = set().union(*(imported(ROOT / folder) for folder in CODE))
    assert distributions(needed) == declared("DEPENDENCIES") - NOT_IMPORTED


def test_what_the_tests_import_is_declared_and_only_that():
    needed = distributions(imported(ROOT / "tests"))
    extra = declared("TEST_DEPENDENCIES")

    assert needed <= declared("DEPENDENCIES") | extra
    assert extra - TOOLS <= needed
