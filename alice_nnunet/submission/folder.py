"""Write a folder that segments by itself, from nnU-Net's results folder of one configuration."""

import ast
import json
import os
import shutil
import subprocess
import sys
from importlib.metadata import distributions
from importlib.resources import files
from pathlib import Path

import torch

import alice_nnunet
from alice_nnunet.checkpoint import save_checkpoint
from alice_nnunet.environment import external_trainers, own_trainers
from alice_nnunet.errors import UserError
from alice_nnunet.files import new_folder, require_new, write_json_atomically
from alice_nnunet.submission.postprocessing import find_postprocessing
from alice_nnunet.submission.requirements import pinned

# What nnU-Net's predictor reads from a checkpoint.
NEEDED = ("network_weights", "trainer_name", "init_args", "inference_allowed_mirroring_axes")

SCRIPTS = ("predict.sh", "predict.py", "check_outputs.py", "Dockerfile", "README.md")
NOT_COPIED = shutil.ignore_patterns(
    "__pycache__", "demo", "commands", "submission", "pretrain", "trainers"
)


def write_submission(
    model: Path,
    out: Path,
    folds: list[str] | None,
    checkpoint: str,
    step_size: float,
    mirroring: bool,
    postprocessing: bool = True,
) -> None:
    """Write the folder out and print what to do with it.

    Args:
        model: nnU-Net's results folder of one configuration.
        out: new folder; it appears only when the model loads from it.
        folds: folds to predict with, None for those of 0 to 4 that are trained.
        checkpoint: file name of each fold's checkpoint.
        step_size: step of the sliding window, as a share of the patch size.
        mirroring: whether predictions of mirrored patches are averaged.
        postprocessing: whether to do what cross-validation of these folds found to help.
    """
    require_new(out)
    check_model(model)
    chosen_folds = choose_folds(model, folds, checkpoint)
    settings = {
        "folds": chosen_folds,
        "checkpoint": checkpoint,
        "step_size": step_size,
        "mirroring": mirroring,
        "postprocessing": find_postprocessing(model, chosen_folds) if postprocessing else [],
    }

    with new_folder(out) as folder:
        code = folder / "code" / "alice_nnunet"
        bytes_kept = 0
        bytes_of_checkpoints = 0

        for fold in chosen_folds:
            file = Path(f"fold_{fold}") / checkpoint
            trainer = write_weights(model / file, folder / "model" / file)
            bytes_kept += (folder / "model" / file).stat().st_size
            bytes_of_checkpoints += (model / file).stat().st_size
        for name in ("plans.json", "dataset.json"):
            shutil.copyfile(model / name, folder / "model" / name)

        write_code(code)
        write_own_trainer(code / "trainers", trainer)
        write_scripts(folder, model, settings)
        loaded = load_alone(folder)

    print(
        f"Wrote {out}: fold {', '.join(map(str, chosen_folds))} of {model.resolve().name}, "
        f"{bytes_kept / 1e6:.1f} MB of weights "
        f"({bytes_of_checkpoints / 1e6:.1f} MB with what only training needs). {loaded}"
    )
    print(
        f"Next: PYTHON={sys.executable} sh {out / 'predict.sh'} INPUTS OUTPUTS, "
        f"then {sys.executable} {out / 'check_outputs.py'} INPUTS OUTPUTS. "
        f"{out / 'README.md'} describes the rest."
    )


def check_model(model: Path) -> None:
    """Raise UserError unless model is a results folder of one configuration with NIfTI files."""
    for name in ("plans.json", "dataset.json"):
        if not (model / name).is_file():
            raise UserError(
                f"no {name} in {model}: give nnU-Net's results folder of one configuration, such "
                f"as nnUNet_results/Dataset007_NAME/AliceTrainer__AlicePlans__3d_fullres"
            )

    ending = json.loads((model / "dataset.json").read_text())["file_ending"]
    if ending != ".nii.gz":
        raise UserError(
            f"{model / 'dataset.json'} says that images end in {ending!r}; "
            f"a submission reads and writes .nii.gz"
        )


def choose_folds(model: Path, wanted: list[str] | None, checkpoint: str) -> list[int | str]:
    """The wanted folds, else those of 0 to 4 that have the checkpoint.

    Raises UserError if a wanted fold, or every fold, has none.
    """
    trained = [
        path.parent.name.removeprefix("fold_")
        for path in sorted(model.glob(f"fold_*/{checkpoint}"))
    ]
    there_is = f"there is one for {', '.join(trained) or 'none'}"

    folds = wanted or [fold for fold in trained if fold != "all"]
    missing = [fold for fold in folds if fold not in trained]
    if missing:
        raise UserError(f"no {checkpoint} in {model} for fold {', '.join(missing)}; {there_is}")
    if not folds:
        raise UserError(
            f"no {checkpoint} in {model} for any of the folds 0 to 4; {there_is} "
            f"(choose with -f and -chk)"
        )

    return [fold if fold == "all" else int(fold) for fold in dict.fromkeys(folds)]


def write_weights(source: Path, target: Path) -> str:
    """Write the part of a checkpoint that prediction needs. Returns the name of its trainer.

    Raises UserError if source cannot be read or does not come from a training by nnU-Net, or
    target cannot be written.
    """
    try:
        # nnU-Net's checkpoints hold more than tensors and plain values.
        checkpoint = torch.load(source, map_location="cpu", weights_only=False)
    except Exception as error:  # torch raises whatever its unpickler stumbles on
        raise UserError(
            f"{source} is not a readable checkpoint ({type(error).__name__})"
        ) from error

    missing = [key for key in NEEDED if key not in checkpoint]
    if missing:
        raise UserError(
            f"{source} is not a checkpoint of an nnU-Net training: it lacks {', '.join(missing)}"
        )

    kept = {key: checkpoint[key] for key in NEEDED}
    kept["init_args"] = {"configuration": checkpoint["init_args"]["configuration"]}

    target.parent.mkdir(parents=True)
    save_checkpoint(target, kept)
    return checkpoint["trainer_name"]


def write_code(target: Path) -> None:
    """Copy the installed library and trainers, without commands and demo data, and the licence."""
    shutil.copytree(
        alice_nnunet.__path__[0], target, ignore=NOT_COPIED, copy_function=shutil.copyfile
    )
    shutil.copytree(
        own_trainers(), target / "trainers", ignore=NOT_COPIED, copy_function=shutil.copyfile
    )

    # A checkout's egg-info can come first on the path, and holds no licence.
    for found in distributions(name="alice-nnunet"):
        text = found.read_text("licenses/LICENSE") or found.read_text("LICENSE")
        if text:
            (target / "LICENSE").write_text(text)
            return
    raise FileNotFoundError("the installed alice-nnunet has no LICENSE")


def write_own_trainer(target: Path, name: str) -> None:
    """Copy the user's file that defines the trainer `name`, unless target defines it already.

    The file is searched in the folders of nnUNet_extTrainer.
    """
    for folder in (target, *map(Path, external_trainers())):
        for file in sorted(folder.glob("*.py")):
            if not defines_class(file, name):
                continue
            if folder != target:
                shutil.copyfile(file, target / file.name)
            return


def defines_class(file: Path, name: str) -> bool:
    """Whether a Python file defines a class of this name at its top level."""
    statements = ast.parse(file.read_text(encoding="utf-8")).body
    return any(isinstance(node, ast.ClassDef) and node.name == name for node in statements)


def write_scripts(folder: Path, model: Path, settings: dict) -> None:
    """Write predict.sh and the other scripts, requirements.txt and settings.json."""
    values = {
        "@PYTHON@": f"{sys.version_info.major}.{sys.version_info.minor}",
        "@VERSION@": alice_nnunet.__version__,
        "@TITLE@": model.resolve().name,
        "@FOLDS@": ", ".join(map(str, settings["folds"])),
    }

    templates = Path(str(files("alice_nnunet.submission"))) / "files"
    for name in SCRIPTS:
        text = (templates / name).read_text()
        for placeholder, value in values.items():
            text = text.replace(placeholder, value)
        (folder / name).write_text(text)
    (folder / "predict.sh").chmod(0o755)

    (folder / "requirements.txt").write_text("\n".join(pinned("alice-nnunet")) + "\n")
    write_json_atomically(folder / "settings.json", settings)


def load_alone(folder: Path) -> str:
    """Load the model with predict.sh in a process of its own. Returns its last line of output.

    Raises UserError if that fails.
    """
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("nnUNet", "alice", "PYTHON"))
    }
    environment |= {"PYTHON": sys.executable, "PYTHONDONTWRITEBYTECODE": "1"}

    done = subprocess.run(
        ["sh", str(folder / "predict.sh"), "--load"],
        env=environment,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        output = done.stderr.strip() or done.stdout.strip()
        last_line = output.splitlines()[-1] if output else f"exit code {done.returncode}"
        raise UserError(
            f"the model does not load from the folder alone, nothing was written: {last_line} "
            f"(a trainer of your own must be in a folder of nnUNet_extTrainer, in one file that "
            f"imports no other file of that folder)"
        )
    return done.stdout.strip().splitlines()[-1]
