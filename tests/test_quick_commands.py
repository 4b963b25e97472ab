"""Help and wrong use answer at once: no command imports torch, or its work, before it is needed."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

COMMANDS = runpy.run_path(str(Path(__file__).parent.parent / "setup.py"))["COMMANDS"]
SLOW = ("torch", "monai", "nnunetv2", "matplotlib", "scipy", "nibabel", "SimpleITK")

WRONG = {
    "alice-env": ["--nonsense"],
    "alice-check": ["-d", "1", "-np", "0"],
    "alice-preprocess": ["-d", "1", "-np", "0"],
    "alice-embed": ["-d", "1", "-preset", "huge"],
    "alice-pretrain": ["-d", "1", "-encoder", "resnet"],
    "alice-plan": ["-d", "1", "-weights", "c.pth", "-lr", "2"],
    "alice-evaluate": ["predictions", "references", "-np", "0"],
    "alice-classify": ["train", "22", "-weights", "W", "-o", "OUT", "--set", "lr=0"],
    "alice-features": ["IN", "OUT", "-weights", "W", "--pca", "-stages", "none"],
    "alice-export": ["checkpoint.pth"],
    "alice-submit": ["model", "out", "-step_size", "2"],
    "alice-demo": ["-encoder", "resnet"],
}

# Calls a command as its console script does, then tells which slow packages it has imported.
CODE = """
import importlib, json, sys

module, slow, *words = json.loads(sys.argv[1])
code = None
try:
    importlib.import_module(module).main(words)
except SystemExit as end:
    code = end.code or 0
print(json.dumps([code, [name for name in slow if name in sys.modules]]))
"""


def call(command: str, words: list[str]) -> tuple[int | None, list[str], str]:
    """Run a command in a new interpreter. Returns exit code, slow imports, text on stderr."""
    task = json.dumps([COMMANDS[command], SLOW, *words])
    done = subprocess.run([sys.executable, "-c", CODE, task], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

    code, imported = json.loads(done.stdout.splitlines()[-1])
    return code, imported, done.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_help_imports_nothing_slow(command):
    code, imported, _ = call(command, ["-h"])
    assert code == 0 and imported == []


@pytest.mark.parametrize("command", COMMANDS)
def test_wrong_use_imports_nothing_slow(command):
    code, imported, error = call(command, WRONG[command])
    assert code == 2 and imported == []
    assert error.startswith(f"{command}: ") and error.count("\n") == 1
