"""alice-submit: a trained model as a folder that segments by itself, as challenges such as FLARE want it."""

import ast
import json
import os
import shutil
import subprocess
import sys
from importlib.metadata import distributions
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path

import torch

import alice_nnunet
from alice_nnunet.errors import CommandParser, UserError, command
from alice_nnunet.files import new_folder, write_json_atomically
from alice_nnunet.submission.requirements import pinned

NEEDED = (
    "network_weights",
    "trainer_name",
    "init_args",
    "inference_allowed_mirroring_axes",
)  # by nnU-Net's predictor
SCRIPTS = ("predict.sh", "predict.py", "check_outputs.py", "Dockerfile", "README.md")
NOT_COPIED = shutil.ignore_patterns(
    "__pycache__", "demo", "commands", "submission", "pretrain", "trainers"
)


@command("alice-submit")
def main(argv: list[str] | None) -> None:
    parser = CommandParser(
        "alice-submit",
        description="Write a folder that segments by itself: weights, plans, code, predict.sh, a "
        "Dockerfile and a script that checks the outputs.",
    )
    parser.add_argument(
        "model",
        metavar="MODEL_FOLDER",
        type=Path,
        help="nnU-Net's results of one configuration, such as .../AliceTrainer__AlicePlans__3d_fullres",
    )
    parser.add_argument("out", metavar="OUT", type=Path, help="new folder")
    parser.add_argument(
        "-f",
        nargs="+",
        metavar="FOLD",
        help="folds to predict with, 0 to 4 or all (default: those of 0 to 4 that are trained)",
    )
    parser.add_argument(
        "-chk",
        default="checkpoint_final.pth",
        metavar="NAME",
        help="checkpoint of each fold (default: %(default)s)",
    )
    parser.add_argument(
        "-step_size",
        type=float,
        default=0.5,
        metavar="X",
        help="of nnU-Net's sliding window (default: %(default)s)",
    )
    parser.add_argument(
        "--disable_tta",
        action="store_true",
        help="predict without mirroring: up to eight times faster",
    )
    arguments = parser.parse_args(argv)
    if not 0 < arguments.step_size <= 1:
        raise UserError(f"-step_size must be above 0 and at most 1, got {arguments.step_size}")
    check_model(arguments.model)
    folds, out = choose_folds(arguments.model, arguments.f, arguments.chk), arguments.out.resolve()
    settings = {
        "folds": folds,
        "checkpoint": arguments.chk,
        "step_size": arguments.step_size,
        "mirroring": not arguments.disable_tta,
    }
    with new_folder(out) as folder:
        kept, whole, trainer = write_model(arguments.model, folder / "model", folds, arguments.chk)
        write_code(folder / "code" / "alice_nnunet")
        write_own_trainer(folder / "code" / "alice_nnunet" / "trainers", trainer)
        write_scripts(folder, arguments.model, settings)
        said = load_alone(folder)
    print(
        f"Wrote {out}: fold {', '.join(map(str, folds))} of {arguments.model.resolve().name}, {kept / 1e6:.1f} MB of weights "
        f"({whole / 1e6:.1f} MB with what only a training needs). {said}"
    )
    print(
        f"Next: PYTHON={sys.executable} sh {out / 'predict.sh'} INPUTS OUTPUTS, then {sys.executable} {out / 'check_outputs.py'} INPUTS OUTPUTS; "
        f"{out / 'README.md'} has the rest"
    )


def check_model(model: Path) -> None:
    """Raise UserError where model is not a results folder of one configuration with NIfTI files."""
    for name in ("plans.json", "dataset.json"):
        if not (model / name).is_file():
            raise UserError(
                f"no {name} in {model}: name nnU-Net's results folder of one configuration, such as "
                f"nnUNet_results/Dataset007_NAME/AliceTrainer__AlicePlans__3d_fullres"
            )
    ending = json.loads((model / "dataset.json").read_text())["file_ending"]
    if ending != ".nii.gz":
        raise UserError(
            f"{model / 'dataset.json'} says that images end in {ending!r}; a submission takes and gives .nii.gz"
        )


def choose_folds(model: Path, wanted: list[str] | None, checkpoint: str) -> list[int | str]:
    """The folds asked for, else those of 0 to 4 that have the checkpoint. Raises UserError for folds that have none."""
    there = [
        path.parent.name.removeprefix("fold_")
        for path in sorted(model.glob(f"fold_*/{checkpoint}"))
    ]
    folds = wanted or [fold for fold in there if fold != "all"]
    if missing := [fold for fold in folds if fold not in there]:
        raise UserError(
            f"no {checkpoint} in {model} for fold {', '.join(missing)}; there is one for {', '.join(there) or 'none'}"
        )
    if not folds:
        raise UserError(
            f"no {checkpoint} in {model} for any of the folds 0 to 4; there is one for {', '.join(there) or 'none'} (-f, -chk)"
        )
    return [fold if fold == "all" else int(fold) for fold in dict.fromkeys(folds)]


def write_model(
    model: Path, target: Path, folds: list[int | str], name: str
) -> tuple[int, int, str]:
    """Copy plans and what prediction needs of each fold's checkpoint. Returns bytes written, bytes of the whole checkpoints, and the
    name of the trainer.

    Raises UserError for a checkpoint that cannot be read or is not of a training by nnU-Net.
    """
    sizes = []
    for fold in folds:
        source, kept = model / f"fold_{fold}" / name, target / f"fold_{fold}" / name
        try:
            checkpoint = torch.load(
                source, map_location="cpu", weights_only=False
            )  # nnU-Net's hold more than plain values
        except Exception as error:  # torch raises whatever its unpickler stumbles on
            raise UserError(
                f"{source} is not a readable checkpoint ({type(error).__name__})"
            ) from error
        if missing := [key for key in NEEDED if key not in checkpoint]:
            raise UserError(
                f"{source} is not a checkpoint of an nnU-Net training: it lacks {', '.join(missing)}"
            )
        kept.parent.mkdir(parents=True)
        torch.save(
            {
                **{key: checkpoint[key] for key in NEEDED},
                "init_args": {"configuration": checkpoint["init_args"]["configuration"]},
            },
            kept,
        )
        sizes.append((kept.stat().st_size, source.stat().st_size))
    for file in ("plans.json", "dataset.json"):
        shutil.copyfile(model / file, target / file)
    return *map(sum, zip(*sizes)), checkpoint["trainer_name"]


def write_code(target: Path) -> None:
    """Copy the library and the trainers as they are installed here, without the commands and demo data, and the licence."""
    trainers = find_spec("alice_nnunet.trainers").submodule_search_locations[0]
    shutil.copytree(
        alice_nnunet.__path__[0], target, ignore=NOT_COPIED, copy_function=shutil.copyfile
    )
    shutil.copytree(trainers, target / "trainers", ignore=NOT_COPIED, copy_function=shutil.copyfile)
    # A checkout's egg-info can come first on the path, and holds no licence.
    texts = (
        found.read_text(name)
        for found in distributions(name="alice-nnunet")
        for name in ("licenses/LICENSE", "LICENSE")
    )
    (target / "LICENSE").write_text(next(filter(None, texts)))


def write_own_trainer(target: Path, name: str) -> None:
    """Copy the file that defines a trainer called name from the folders of nnUNet_extTrainer, unless it is one of target's."""
    folders = [
        target,
        *map(Path, filter(None, os.environ.get("nnUNet_extTrainer", "").split(os.pathsep))),
    ]
    for file in (file for folder in folders for file in sorted(folder.glob("*.py"))):
        if any(
            isinstance(node, ast.ClassDef) and node.name == name
            for node in ast.parse(file.read_text(encoding="utf-8")).body
        ):
            if file.parent != target:
                shutil.copyfile(file, target / file.name)
            return


def write_scripts(folder: Path, model: Path, settings: dict) -> None:
    """predict.sh and the other scripts, requirements.txt, settings.json."""
    values = {
        "PYTHON": f"{sys.version_info.major}.{sys.version_info.minor}",
        "VERSION": alice_nnunet.__version__,
        "TITLE": model.resolve().name,
        "FOLDS": ", ".join(map(str, settings["folds"])),
    }
    for name in SCRIPTS:
        text = (Path(str(files("alice_nnunet.submission"))) / "files" / name).read_text()
        for key, value in values.items():
            text = text.replace(f"@{key}@", value)
        (folder / name).write_text(text)
    (folder / "predict.sh").chmod(0o755)
    (folder / "requirements.txt").write_text("\n".join(pinned("alice-nnunet")) + "\n")
    write_json_atomically(folder / "settings.json", settings)


def load_alone(folder: Path) -> str:
    """Load the model by predict.sh in a process of its own. Returns what it says; raises UserError where it fails."""
    clean = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("nnUNet", "alice", "PYTHON"))
    }
    clean |= {"PYTHON": sys.executable, "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        ["sh", str(folder / "predict.sh"), "--load"], env=clean, capture_output=True, text=True
    )
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or done.stdout.strip().splitlines()[-1:]
        raise UserError(
            f"the model does not load from the folder alone, nothing was written: {' '.join(last)} (a trainer of your own must be in a "
            "folder of nnUNet_extTrainer, its file complete in itself)"
        )
    return done.stdout.strip().splitlines()[-1]
