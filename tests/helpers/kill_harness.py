"""A pretraining killed again and again: does it ever lose more than an interval?

    python -m tests.helpers.kill_harness FOLDER [--kills 30] [--seed 0] [--steps 240]

It is killed by SIGKILL in the middle of a write, in a step, or while it starts, at random ones of
these. After every kill each checkpoint must load, and the newest may lie at most save_every steps
behind the last step that was logged. At the end the weights and the optimizer must be those of a
run that nobody touched, bit for bit. FOLDER is for the data and the results. One line is printed
for each kill.
"""

import argparse
import io
import json
import multiprocessing
import os
import random
import re
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import torch

import alice_nnunet
from alice_nnunet.checkpoint import load_checkpoint
from alice_nnunet.names import FINAL, LATEST
from alice_nnunet.pretrain.commands.pretrain import main
from tests.helpers.warm_processes import start_fork_server

REACHED = "reached"  # file that says that a process waits to be killed
SAVE_EVERY = 4  # steps; every second one is logged
SETTINGS = (
    "precision=fp32",  # whatever the CPU has
    "batch_size=1",
    "width=24",
    "depth=3",
    "heads=2",
    "decoder_width=24",
    "decoder_depth=1",
    "decoder_heads=2",
    "head_hidden=32",
    f"save_every={SAVE_EVERY}",
    "log_every=2",
    "validate_every=1000",
    "crop_size=32,32,32",
)
WORDS = [
    *("-d", "31", "-encoder", "vit", "-preset", "tiny", "-matcher", "body"),
    *("-device", "cpu", "-np", "1", "--c"),
    *(f"--set={setting}" for setting in SETTINGS),
]
RESULTS = Path("Dataset031_Torso", "AlicePretrain__AlicePretrainPlans__3d_fullres", "vit")


@dataclass(frozen=True)
class Moment:
    """When a run is killed.

    Attributes:
        where: "write", "step" or "start".
        number: Of the write or the step, counted from the start of the process.
        share: How much of the file is written by then, or of STARTING has passed.
    """

    where: str
    number: int
    share: float


STARTING = 2.0  # seconds in which a process that starts is killed


def random_moment(where: str, rng: random.Random) -> Moment:
    return Moment(where, rng.randint(0, 2 if where == "write" else 5), rng.random())


def make_dataset(root: Path) -> None:
    """A raw dataset of three of the CT volumes that ship with the package."""
    images = root / "raw" / "Dataset031_Torso" / "imagesTr"
    images.mkdir(parents=True, exist_ok=True)

    shipped = Path(alice_nnunet.__file__).parent / "demo" / "volumes"
    for case in ("crlm1004", "cptacpda_c3l00189", "ts_dicomslab"):
        link = images / f"{case}_0000.nii.gz"
        if not link.exists():
            link.symlink_to(shipped / f"{case}.nii.gz")

    description = {"channel_names": {"0": "CT"}, "file_ending": ".nii.gz"}
    (images.parent / "dataset.json").write_text(json.dumps(description))


def pretrain(root: Path, results: str, steps: int, moment: Moment | None) -> None:
    """alice-pretrain in this process, its words to a file; at the moment it waits to be killed."""
    torch.set_num_threads(1)
    for name, folder in (("raw", "raw"), ("preprocessed", "preprocessed"), ("results", results)):
        os.environ[f"nnUNet_{name}"] = str(root / folder)
    with (root / f"{results}.txt").open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)

    if moment is not None and moment.where == "write":
        pause_in_write(moment, root / REACHED)
    if moment is not None and moment.where == "step":
        pause_in_step(moment, root / REACHED)
    main([*WORDS, f"--set=iterations={steps}"])


def pause_in_write(moment: Moment, reached: Path) -> None:
    """Let a checkpoint's write stop after a share of the file."""
    save = torch.save
    writes = 0

    def save_a_part(content, file) -> None:
        nonlocal writes
        writes += 1
        if writes <= moment.number:
            save(content, file)
            return

        whole = io.BytesIO()
        save(content, whole)
        file.write(whole.getvalue()[: int(moment.share * whole.tell())])
        file.flush()
        wait_for_the_end(reached)

    patch("alice_nnunet.checkpoint.torch.save", save_a_part).start()


def pause_in_step(moment: Moment, reached: Path) -> None:
    """Let a step stop in front of the optimizer."""
    step = torch.optim.AdamW.step
    steps = 0

    def step_unless_it_is_the_last(optimizer) -> None:
        nonlocal steps
        steps += 1
        if steps > moment.number:
            wait_for_the_end(reached)
        step(optimizer)

    patch("torch.optim.AdamW.step", step_unless_it_is_the_last).start()


def wait_for_the_end(reached: Path) -> None:
    reached.touch()
    while True:
        signal.pause()


def wait_for_moment(process: multiprocessing.Process, moment: Moment, reached: Path) -> None:
    """Return at the moment, or when the process has ended."""
    if moment.where == "start":
        process.join(moment.share * STARTING)
        return
    while process.is_alive() and not reached.exists():
        time.sleep(0.01)


def start(
    root: Path, results: str, steps: int, moment: Moment | None = None
) -> multiprocessing.Process:
    """pretrain() in a new process, without the seconds that its imports take."""
    start_fork_server()
    process = multiprocessing.get_context("forkserver").Process(
        target=pretrain, args=(root, results, steps, moment)
    )
    process.start()
    return process


def finish(root: Path, results: str, steps: int) -> None:
    """pretrain() to its end."""
    process = start(root, results, steps)
    process.join()
    assert process.exitcode == 0, (root / f"{results}.txt").read_text()


def parts_of(folder: Path) -> list[Path]:
    """Checkpoints whose writing a kill cut off."""
    return list(folder.glob("checkpoint_*.partial"))


def newest_step(folder: Path) -> int:
    """Step of the newest checkpoint, 0 without one. Each checkpoint that is there must load."""
    files = [folder / name for name in (LATEST, FINAL)]
    return max((load_checkpoint(file)["step"] for file in files if file.exists()), default=0)


def kill_again_and_again(
    root: Path, kills: int, seed: int, steps: int
) -> tuple[list[dict], Path, Path]:
    """Run an untouched training, then one that is killed, to its end.

    Returns:
        A row for each kill, and the folders of both.
    """
    make_dataset(root)
    whole = root / "whole" / RESULTS
    killed = root / "killed" / RESULTS
    finish(root, "whole", steps)

    rng = random.Random(seed)
    rows: list[dict] = []
    while len(rows) < kills and not (killed / FINAL).exists():
        moment = random_moment(("write", "step", "start")[len(rows) % 3], rng)
        for part in parts_of(killed):
            part.unlink()  # left by an earlier kill

        (root / REACHED).unlink(missing_ok=True)

        process = start(root, "killed", steps, moment)
        wait_for_moment(process, moment, root / REACHED)
        if not process.is_alive():
            break
        os.kill(process.pid, signal.SIGKILL)
        process.join()

        logged = last_logged_step(killed)
        saved = newest_step(killed)
        row = {
            "kill": len(rows) + 1,
            "in a": moment.where,
            "left a part": bool(parts_of(killed)),
            "logged": logged,
            "saved": saved,
            "lost": max(0, logged - saved),
        }
        rows.append(row)

    finish(root, "killed", steps)
    return rows, whole, killed


def last_logged_step(folder: Path) -> int:
    """The last step in the log of the run, 0 without one. A line that the kill cut is no step."""
    log = folder / "training_log.txt"
    steps = re.findall(r"step (\d+)/\d+ \|", log.read_text()) if log.exists() else []
    return int(steps[-1]) if steps else 0


def same_end(first: Path, second: Path) -> bool:
    """Whether two runs ended with the same weights and the same optimizer, bit for bit."""
    ours = load_checkpoint(first / FINAL)
    theirs = load_checkpoint(second / FINAL)
    if ours["step"] != theirs["step"]:
        return False

    ours_moments = ours["optimizer"]["state"]
    theirs_moments = theirs["optimizer"]["state"]
    return (
        same_tensors(ours["model"], theirs["model"])
        and ours_moments.keys() == theirs_moments.keys()
        and all(same_tensors(ours_moments[i], theirs_moments[i]) for i in ours_moments)
    )


def same_tensors(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[n], theirs[n]) for n in ours)


def command() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=240)
    arguments = parser.parse_args()

    rows, whole, killed = kill_again_and_again(
        arguments.folder.resolve(), arguments.kills, arguments.seed, arguments.steps
    )

    for row in rows:
        print(row)
    parts = sum(row["left a part"] for row in rows)
    lost = max(row["lost"] for row in rows)
    print(
        f"{len(rows)} kills, {parts} inside a write; lost at most {lost} of {SAVE_EVERY} steps; "
        f"the same end, bit for bit: {same_end(whole, killed)}"
    )


if __name__ == "__main__":
    command()
