"""The wheel, installed in a fresh environment, as a user has it: commands, data, and nnU-Net's own lookup of the trainers."""

import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
COMMANDS = (
    "alice-env",
    "alice-preprocess",
    "alice-embed",
    "alice-pretrain",
    "alice-plan",
    "alice-evaluate",
    "alice-export",
    "alice-submit",
    "alice-demo",
)


@pytest.fixture(scope="module")
def environment(tmp_path_factory) -> Path:
    """A new virtual environment with our wheel; the packages it depends on are those of this environment."""
    folder = tmp_path_factory.mktemp("package")
    source = folder / "source"  # building leaves folders behind; not in the checkout
    subprocess.run(
        ["git", "-C", str(ROOT), "checkout-index", "-a", f"--prefix={source}/"], check=True
    )
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "-q",
            "--no-deps",
            "--no-build-isolation",
            "-w",
            str(folder),
            str(source),
        ],
        check=True,
    )
    (wheel,) = folder.glob("*.whl")
    subprocess.run(
        [sys.executable, "-m", "venv", "--without-pip", str(folder / "venv")], check=True
    )
    site = next((folder / "venv").glob("lib/python*/site-packages"))
    with zipfile.ZipFile(wheel) as archive:
        names = {name.split("/")[0] for name in archive.namelist()}
    assert names == {
        "alice_nnunet",
        wheel.name.split("-py3")[0] + ".dist-info",
    }  # no top-level trainers, pretrain or tests
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "--python",
            str(folder / "venv" / "bin" / "python"),
            "install",
            "-q",
            "--no-deps",
            str(wheel),
        ],
        check=True,
    )
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "venv"


def run(environment: Path, *words: str, **variables: str) -> subprocess.CompletedProcess:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("nnUNet", "PYTHON", "alice"))}
    return subprocess.run(
        [str(environment / "bin" / words[0]), *words[1:]],
        env={**clean, **variables},
        capture_output=True,
        text=True,
        cwd=environment,
    )


def test_the_installed_package_is_the_wheels(environment):
    where = run(
        environment,
        "python",
        "-c",
        "import alice_nnunet.pretrain, alice_nnunet.trainers as t; print(t.__path__[0])",
    )
    assert where.returncode == 0 and where.stdout.strip().startswith(str(environment)), where


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_answers(environment, name):
    answer = run(environment, name, "-h")
    assert answer.returncode == 0 and name in answer.stdout, answer.stderr


def test_wrong_use_of_an_installed_command_is_one_line(environment):
    wrong = run(environment, "alice-env", "--nonsense")
    assert (
        wrong.returncode == 2
        and wrong.stderr.count("\n") == 1
        and wrong.stderr.startswith("alice-env: ")
    )


def test_nnunet_finds_the_trainers_through_alice_env(environment):
    export = run(environment, "alice-env", nnUNet_extTrainer="/some where/else").stdout
    lookup = (
        "from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name as find\n"
        "for name in ('AliceTrainer', 'AliceScratchTrainer'): print(find(name).__name__)"
    )
    shell = f'{export}\necho "$nnUNet_extTrainer"\n"{environment}/bin/python" -c "{lookup}"'
    answer = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, cwd=environment)
    lines = answer.stdout.splitlines()
    assert answer.returncode == 0, answer.stderr
    assert (
        lines[0].startswith("/some where/else" + os.pathsep)
        and "AliceTrainer" in lines
        and "AliceScratchTrainer" in lines
    )


def test_the_demo_volumes_travel_with_it(environment):
    count = run(
        environment,
        "python",
        "-c",
        "from alice_nnunet.demo.datasets import volumes; print(len(volumes()))",
    )
    assert int(count.stdout) >= 5
    (notice,) = environment.glob("lib/python*/site-packages/alice_nnunet/demo/volumes/NOTICE")
    assert "CC BY" in notice.read_text()
    assert sum(p.stat().st_size for p in notice.parent.iterdir()) < 12e6
