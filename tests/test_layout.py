"""The direction of imports, the size of folders, and what may stand where."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = {
    "alice_nnunet": "alice_nnunet",
    "pretrain": "alice_nnunet.pretrain",
    "trainers": "alice_nnunet.trainers",
}
STANDALONE = ROOT / "alice_nnunet" / "submission" / "files"  # scripts that run without the package
LARGEST_FOLDER = 12  # modules
CLASS_PATHS = ("vit.py", "swin.py", "nnformer.py")  # of model/, kept for plans that name them
SEAMS = ("nnunetv2", "SimpleITK", "monai", "batchgenerators", "nibabel")

# The rooms from the bottom up: each may import from itself and from those before it.
LIBRARY_ROOMS = (
    "root",
    "settings",
    "data",
    "checks",
    "model",
    "pictures",
    "matcher",
    "coverage",
    "networks",
    "sharing",
    "finetuning",
    "datasets",
    "planning",
    "evaluation",
    "features",
    "classification",
    "demo",
    "submission",
    "doctor",
    "commands",
)
PRETRAIN_ROOMS = ("runtime", "datasets", "embedding", "training", "commands")


def modules() -> dict[str, Path]:
    """Dotted name -> file of every module of the installed package."""
    found = {}
    for folder, package in FOLDERS.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            if STANDALONE in path.parents:
                continue

            inside = path.relative_to(ROOT / folder).with_suffix("").parts
            name = ".".join((package, *inside)).removesuffix(".__init__")
            found[name] = path

    return found


MODULES = modules()


def imports(path: Path, at_top_only: bool = False) -> set[str]:
    """Names that a file imports, also inside functions."""
    tree = ast.parse(path.read_text())
    nodes = tree.body if at_top_only else ast.walk(tree)

    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, (
                f"{path}: relative imports fail where nnU-Net imports a file by itself"
            )
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}

    return found


def imported_modules(name: str) -> set[str]:
    """Modules of this package that a module imports, itself left out."""
    packages = {module.rpartition(".")[0] for module in MODULES}
    return {
        other
        for other in imports(MODULES[name])
        if other in MODULES and other != name and other not in packages
    }


def room(name: str) -> tuple[str, str]:
    """Of a module: library, pretrain or trainers, and the folder in it."""
    words = name.split(".")[1:]
    if words and words[0] in ("pretrain", "trainers"):
        return words[0], words[1] if len(words) > 2 else "root"
    if words == ["pictures"]:
        return "library", "pictures"
    return "library", words[0] if len(words) > 1 else "root"


def starts(names: set[str], *prefixes: str) -> set[str]:
    return {n for n in names if any(n == p or n.startswith(p + ".") for p in prefixes)}


@pytest.mark.parametrize("name", MODULES)
def test_no_import_goes_up(name):
    side, here = room(name)
    if side == "trainers" or name.endswith(("__main__", "pretrain")):
        return
    if name == "alice_nnunet":
        return  # the front door offers what lies inside

    order = LIBRARY_ROOMS if side == "library" else PRETRAIN_ROOMS
    for other in imported_modules(name):
        other_side, there = room(other)
        if other_side == "library" and side == "pretrain":
            continue

        assert other_side == side, f"{name} imports {other}"
        assert order.index(there) <= order.index(here), f"{name} imports {other}, which is above it"


def test_no_modules_import_each_other_in_a_circle():
    graph = {name: imported_modules(name) for name in MODULES}
    TopologicalSorter(graph).prepare()


@pytest.mark.parametrize("folder, other", [("pretrain", "trainers"), ("trainers", "pretrain")])
def test_pretrain_and_trainers_do_not_know_each_other(folder, other):
    files = sorted((ROOT / folder).rglob("*.py"))
    assert files
    for path in files:
        assert not starts(imports(path), f"alice_nnunet.{other}", other), path


def test_commands_do_not_import_each_other():
    for name in MODULES:
        if ".commands." not in name:
            continue

        others = {other for other in imported_modules(name) if ".commands." in other}
        assert not others, f"{name} imports {others}"


def test_no_folder_is_a_drawer():
    for folder in {path.parent for path in MODULES.values()}:
        left_out = {"__init__.py", *(CLASS_PATHS if folder.name == "model" else ())}
        names = sorted(path.name for path in folder.glob("*.py") if path.name not in left_out)
        assert len(names) <= LARGEST_FOLDER, f"{folder} has {len(names)} modules: {names}"


def test_trainers_holds_nothing_but_trainer_classes():
    for path in sorted((ROOT / "trainers").rglob("*.py")):
        if path.name == "__init__.py":
            assert not path.read_text().strip()
            continue

        assert path.name.startswith("alice_"), (
            f"{path.name}: nnU-Net imports it under its bare name"
        )
        for node in ast.parse(path.read_text()).body:
            an_import = isinstance(node, (ast.Import, ast.ImportFrom))
            a_docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
            a_trainer = isinstance(node, ast.ClassDef) and node.name.endswith("Trainer")
            assert an_import or a_docstring or a_trainer, (
                f"{path}:{node.lineno}: only trainer classes may be defined here"
            )


def test_method_and_step_run_without_nnunet():
    """With torch, numpy, scipy and blosc2 alone one can measure model, views and loader."""
    code = (
        "import sys\n"
        f"for name in {SEAMS!r}: sys.modules[name] = None\n"
        "import alice_nnunet.model.methods.alice, alice_nnunet.model.encoders.registry\n"
        "import alice_nnunet.model.losses, alice_nnunet.model.views\n"
        "import alice_nnunet.data.pairs, alice_nnunet.matcher.baselines\n"
        "import alice_nnunet.checkpoint, alice_nnunet.schedules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_no_one_keeps_state_or_works_at_import():
    """Modules leave torch's and numpy's random numbers alone when they are imported."""
    code = (
        "import torch, numpy as np\n"
        "a, b = torch.get_rng_state(), np.random.get_state()[1].copy()\n"
        "import alice_nnunet.model.methods.alice, alice_nnunet.pretrain.training.run\n"
        "import alice_nnunet.finetuning.network\n"
        "assert torch.equal(a, torch.get_rng_state()) and (b == np.random.get_state()[1]).all()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
