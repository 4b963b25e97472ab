"""A pretraining killed again and again, at random moments and while it writes: does it ever lose more than an interval?

    python tests/kill_harness.py FOLDER [--kills 30] [--seed 0] [--steps 240]

After every SIGKILL each checkpoint must load, and the newest may lie at most save_every steps behind the last step that was
logged. At the end the weights and the optimizer must be those of a run that nobody touched, bit for bit. FOLDER is for the
data and the results. One line is printed for each kill.
"""

import argparse
import json
import multiprocessing
import os
import random
import re
import signal
import time
from pathlib import Path

import torch

import alice_nnunet
from alice_nnunet.checkpoint import load_checkpoint
from alice_nnunet.names import FINAL, LATEST
from alice_nnunet.pretrain.commands.pretrain import main

SAVE_EVERY = 4  # steps; every second one is logged
AIMS = ("a write", "its steps", "its start")
WORDS = [
    "-d",
    "31",
    "-encoder",
    "vit",
    "-preset",
    "tiny",
    "-matcher",
    "body",
    "-device",
    "cpu",
    "-np",
    "1",
    "--c",
    *(
        f"--set={s}"
        for s in (
            "batch_size=1",
            "width=24",
            "depth=2",
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
    ),
]


def make_dataset(root: Path) -> None:
    """A raw dataset of three of the CT volumes that ship with the package."""
    images = root / "raw" / "Dataset031_Torso" / "imagesTr"
    images.mkdir(parents=True, exist_ok=True)
    for case in ("crlm1004", "cptacpda_c3l00189", "ts_dicomslab"):
        link = images / f"{case}_0000.nii.gz"
        if not link.exists():
            link.symlink_to(
                Path(alice_nnunet.__file__).parent / "demo" / "volumes" / f"{case}.nii.gz"
            )
    (images.parent / "dataset.json").write_text(
        json.dumps({"channel_names": {"0": "CT"}, "file_ending": ".nii.gz"})
    )


def pretrain(root: Path, results: str, steps: int) -> None:
    """alice-pretrain in this process, its words to a file."""
    torch.set_num_threads(1)
    for name, folder in (("raw", "raw"), ("preprocessed", "preprocessed"), ("results", results)):
        os.environ[f"nnUNet_{name}"] = str(root / folder)
    with open(root / f"{results}.txt", "a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        main([*WORDS, f"--set=iterations={steps}"])


def start(*arguments) -> multiprocessing.Process:
    """pretrain() in a new process, without the seconds that its imports take."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["alice_nnunet.pretrain.training.job"])
    process = context.Process(target=pretrain, args=arguments)
    process.start()
    return process


def wait_for_moment(
    process: multiprocessing.Process, folder: Path, rng: random.Random, aim: str
) -> None:
    """Return at a random moment of the aimed kind; at once when the process has ended."""
    stamp = lambda name: (folder / name).stat().st_mtime_ns if (folder / name).exists() else 0

    def wait_for(condition) -> None:
        while process.is_alive() and not condition():
            time.sleep(0.0005)

    if aim == "a write":
        for _ in range(rng.randint(0, 2)):  # so many are let through
            before = stamp(LATEST)
            wait_for(lambda: stamp(LATEST) != before)
        wait_for(lambda: parts_of(folder))
        time.sleep(rng.uniform(0, 0.01))
        return
    if aim == "its steps":
        before = stamp("training_log.txt")
        wait_for(lambda: stamp("training_log.txt") != before)
    end = time.monotonic() + rng.uniform(0, 2)
    wait_for(lambda: time.monotonic() > end)


def parts_of(folder: Path) -> list[Path]:
    """Checkpoints that are being written, or whose writing this kill cut off."""
    return [part for part in folder.glob("checkpoint_*.partial") if part.stat().st_mtime_ns]


def newest_step(folder: Path) -> int:
    """Step of the newest checkpoint, 0 without one. Each checkpoint that is there must load."""
    return max(
        (
            load_checkpoint(folder / name)["step"]
            for name in (LATEST, FINAL)
            if (folder / name).exists()
        ),
        default=0,
    )


def kill_again_and_again(
    root: Path, kills: int, seed: int, steps: int
) -> tuple[list[dict], Path, Path]:
    """The killed run to its end, then the untouched one. Returns a row for each kill, and the folders of both."""
    rng, rows = random.Random(seed), []
    make_dataset(root)
    folders = [
        root
        / results
        / "Dataset031_Torso"
        / "AlicePretrain__AlicePretrainPlans__3d_fullres"
        / "vit"
        for results in ("whole", "killed")
    ]
    whole = start(root, "whole", steps)
    whole.join()
    assert whole.exitcode == 0, (root / "whole.txt").read_text()
    while len(rows) < kills and not (folders[1] / FINAL).exists():
        aim = AIMS[len(rows) % len(AIMS)]
        for part in folders[1].glob("checkpoint_*.partial"):
            os.utime(part, ns=(0, 0))  # left by an earlier kill; a new one is newer
        process = start(root, "killed", steps)
        wait_for_moment(process, folders[1], rng, aim)
        if not process.is_alive():
            break
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        unfinished = bool(parts_of(folders[1]))
        done, saved = last_logged_step(folders[1]), newest_step(folders[1])
        rows.append(
            {
                "kill": len(rows) + 1,
                "aimed at": aim,
                "left a part": unfinished,
                "logged": done,
                "saved": saved,
                "lost": max(0, done - saved),
            }
        )
    process = start(root, "killed", steps)
    process.join()
    assert process.exitcode == 0, (root / "killed.txt").read_text()
    return rows, *folders


def last_logged_step(folder: Path) -> int:
    """The last step in the log of the run, 0 without one. A line that the kill cut is no step."""
    log = folder / "training_log.txt"
    steps = re.findall(r"step (\d+)/\d+ \|", log.read_text()) if log.exists() else []
    return int(steps[-1]) if steps else 0


def same_end(first: Path, second: Path) -> bool:
    """Whether two runs ended with the same weights and the same optimizer, bit for bit."""
    ours, theirs = (load_checkpoint(folder / FINAL) for folder in (first, second))
    states = [run["optimizer"]["state"] for run in (ours, theirs)]
    return (
        ours["step"] == theirs["step"]
        and ours["model"].keys() == theirs["model"].keys()
        and states[0].keys() == states[1].keys()
        and all(torch.equal(ours["model"][name], theirs["model"][name]) for name in ours["model"])
        and all(
            torch.equal(states[0][weight][name], states[1][weight][name])
            for weight in states[0]
            for name in states[0][weight]
        )
    )


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
    print(
        f"{len(rows)} kills, {sum(row['left a part'] for row in rows)} inside a write; lost at most {max(row['lost'] for row in rows)} "
        f"of {SAVE_EVERY} steps; the same end, bit for bit: {same_end(whole, killed)}"
    )


if __name__ == "__main__":
    command()
