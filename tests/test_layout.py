"""The direction of imports, and what may stand in trainers/."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LIBRARY = sorted((ROOT / "alice_nnunet").rglob("*.py"))
SEAMS = ("nnunetv2", "SimpleITK", "monai", "batchgenerators", "nibabel")


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, (
                f"{path}: relative imports fail where nnU-Net imports a file by itself"
            )
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def starts(names: set[str], *prefixes: str) -> set[str]:
    return {n for n in names if any(n == p or n.startswith(p + ".") for p in prefixes)}


@pytest.mark.parametrize("path", LIBRARY, ids=lambda p: str(p.relative_to(ROOT)))
def test_the_library_knows_nothing_of_the_verbs(path):
    assert not starts(
        imports(path), "alice_nnunet.pretrain", "alice_nnunet.trainers", "pretrain", "trainers"
    )


@pytest.mark.parametrize("folder, other", [("pretrain", "trainers"), ("trainers", "pretrain")])
def test_pretrain_and_trainers_do_not_know_each_other(folder, other):
    files = sorted((ROOT / folder).rglob("*.py"))
    assert files
    for path in files:
        assert not starts(imports(path), f"alice_nnunet.{other}", other), path


def test_trainers_holds_nothing_but_trainer_classes():
    for path in sorted((ROOT / "trainers").rglob("*.py")):
        if path.name == "__init__.py":
            assert not path.read_text().strip()
            continue
        assert path.name.startswith("alice_"), (
            f"{path.name}: nnU-Net imports it under its bare name"
        )
        for node in ast.parse(path.read_text()).body:
            allowed = (
                isinstance(node, (ast.Import, ast.ImportFrom))
                or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
                or (isinstance(node, ast.ClassDef) and node.name.endswith("Trainer"))
            )
            assert allowed, f"{path}:{node.lineno}: only trainer classes may be defined here"


def test_method_and_step_run_without_nnunet():
    """A bare GPU machine with torch, numpy, scipy and blosc2 can measure the model, the losses, the views and the loader."""
    code = (
        "import sys\n"
        f"for name in {SEAMS!r}: sys.modules[name] = None\n"
        "import alice_nnunet.model.alice, alice_nnunet.model.encoders.registry, alice_nnunet.model.losses, alice_nnunet.model.views\n"
        "import alice_nnunet.data.pairs, alice_nnunet.matcher.baselines, alice_nnunet.checkpoint, alice_nnunet.schedules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_no_one_keeps_state_or_works_at_import():
    """The package's modules import in a process of their own and leave torch's and numpy's random numbers alone."""
    code = (
        "import torch, numpy as np\n"
        "a, b = torch.get_rng_state(), np.random.get_state()[1].copy()\n"
        "import alice_nnunet.model.alice, alice_nnunet.pretrain.training.run, alice_nnunet.finetuning.network\n"
        "assert torch.equal(a, torch.get_rng_state()) and (b == np.random.get_state()[1]).all()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
