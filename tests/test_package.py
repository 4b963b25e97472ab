"""The wheel in a fresh environment: commands, data, nnU-Net's lookup of the trainers."""

import os
import runpy
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
COMMANDS = runpy.run_path(str(ROOT / "setup.py"))["COMMANDS"]


def pip(*words: str) -> None:
    subprocess.run([sys.executable, "-m", "pip", *words, "-q", "--no-deps"], check=True)


@pytest.fixture(scope="module")
def environment(tmp_path_factory) -> Path:
    """A new virtual environment with our wheel, and the dependencies of the present environment."""
    folder = tmp_path_factory.mktemp("package")

    # Building leaves folders behind: not in the checkout.
    source = folder / "source"
    checkout = ["git", "-C", str(ROOT), "checkout-index", "-a", f"--prefix={source}/"]
    subprocess.run(checkout, check=True)
    pip("wheel", "--no-build-isolation", "-w", str(folder), str(source))

    # No top-level trainers, pretrain or tests.
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = {name.split("/")[0] for name in archive.namelist()}
    assert names == {"alice_nnunet", wheel.name.split("-py3")[0] + ".dist-info"}

    venv = folder / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
    pip("--python", str(venv / "bin" / "python"), "install", str(wheel))

    site = next(venv.glob("lib/python*/site-packages"))
    dependencies = [path for path in sys.path if path.endswith("site-packages")]
    (site / "dependencies.pth").write_text("\n".join(dependencies) + "\n")
    return venv


def run(environment: Path, *words: str, **variables: str) -> subprocess.CompletedProcess:
    """Run a program of the environment without nnU-Net's, our and Python's variables."""
    clean = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("nnUNet", "PYTHON", "alice"))
    }
    return subprocess.run(
        [str(environment / "bin" / words[0]), *words[1:]],
        env={**clean, **variables},
        capture_output=True,
        text=True,
        cwd=environment,
    )


def test_the_installed_package_is_the_wheels(environment):
    code = "import alice_nnunet.pretrain, alice_nnunet.trainers as t; print(t.__path__[0])"
    where = run(environment, "python", "-c", code)
    assert where.returncode == 0 and where.stdout.strip().startswith(str(environment)), where


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_answers(environment, name):
    answer = run(environment, name, "-h")
    assert answer.returncode == 0 and name in answer.stdout, answer.stderr


def test_wrong_use_of_an_installed_command_is_one_line(environment):
    wrong = run(environment, "alice-env", "--nonsense")
    assert wrong.returncode == 2
    assert wrong.stderr.count("\n") == 1 and wrong.stderr.startswith("alice-env: ")


def test_nnunet_finds_the_trainers_through_alice_env(environment):
    export = run(environment, "alice-env", nnUNet_extTrainer="/some where/else").stdout
    lookup = (
        "from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name as find\n"
        "for name in ('AliceTrainer', 'AliceScratchTrainer'): print(find(name).__name__)"
    )
    shell = f'{export}\necho "$nnUNet_extTrainer"\n"{environment}/bin/python" -c "{lookup}"'

    answer = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, cwd=environment)

    assert answer.returncode == 0, answer.stderr
    folders, *names = answer.stdout.splitlines()
    assert folders.startswith("/some where/else" + os.pathsep)
    assert {"AliceTrainer", "AliceScratchTrainer"} <= set(names)


def test_the_demo_volumes_travel_with_it(environment):
    code = "from alice_nnunet.demo.datasets import volumes; print(len(volumes()))"
    count = run(environment, "python", "-c", code)
    assert int(count.stdout) >= 20

    (installed,) = environment.glob("lib/python*/site-packages/alice_nnunet")
    folder = installed / "demo" / "volumes"
    assert "CC BY" in (folder / "NOTICE").read_text()
    assert sum(path.stat().st_size for path in folder.rglob("*")) < 12e6
    assert (installed / "py.typed").is_file()
