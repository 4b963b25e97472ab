"""Does pretraining improve segmentation where few people are labeled? Dice of sarcomas.

    python benchmarks/fine_tuning.py DATA OUT [--encoder vit] [--seeds 0 1 2] [--labeled 8]
        [--steps 2000] [--epochs 10] [--iterations 40] [--set token=8,8,8 ...]
        [--recipe learning_rate=1e-4 ...] [--json FILE]

DATA has the folders torso and sarcoma, each with images/CASE.nii.gz and labels/CASE.nii.gz. Torsos
without labels and 16 people with a sarcoma, whose labels are not used, are pretrained on. Of the
other 20 people with a sarcoma, the first of 8 are fine-tuned on, and 12 are segmented (the
validation of nnU-Net's fold 0). Starts: Alice's default, reconstruction alone (MIM only), and
random weights, all with the same network, plans, recipe, seed and number of steps. Every step is a
command that a user would type. What is there is not repeated.

Printed: mean Dice over the test people for each start and seed, and the difference from random
weights: its mean, that of each seed, and Wilcoxon's p over the test people (means over seeds).
"""

import argparse
import json
import os
import re
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from scipy.stats import wilcoxon

from alice_nnunet.environment import with_own_trainers
from alice_nnunet.model.encoders.registry import ENCODERS
from alice_nnunet.names import CONFIGURATION, FINAL, RUNS

UNLABELED = "Dataset025_Mixed"
LABELED = "Dataset026_Sarcoma"

PRETRAINED_ON = 16  # people with a sarcoma
MOST_LABELED = 8
RECIPE = ("optimizer=AdamW", "augmentation=none", "precision=fp32", "learning_rate=1e-3")
SPLIT_SEED = 0  # of who is pretrained on, fine-tuned on and segmented

# Start -> settings of its pretraining, and the trainer that takes its plans. Random weights need
# plans, too, and have Alice's.
PRETRAININGS = {"alice": [], "mim": ["weight_dv=0", "weight_st=0"]}
STARTS = {
    "alice": ("alice", "AliceTrainer"),
    "mim": ("mim", "AliceTrainer"),
    "scratch": ("alice", "AliceScratchTrainer"),
}


@dataclass
class Result:
    """Dice of the test people after a fine-tuning.

    Attributes:
        start: of STARTS.
        seed: of pretraining and fine-tuning.
        dice: of each test person.
    """

    start: str
    seed: int
    dice: dict[str, float]

    @property
    def mean(self) -> float:
        return float(np.mean(list(self.dice.values())))


@dataclass(frozen=True)
class People:
    """The people with a sarcoma, by what they are used for."""

    pretraining: list[str]
    training: list[str]
    test: list[str]


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("data", type=Path)
    p.add_argument("out", type=Path)
    p.add_argument("--encoder", default="vit", choices=list(ENCODERS))
    p.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    p.add_argument("--labeled", type=int, default=MOST_LABELED, choices=range(1, MOST_LABELED + 1))
    p.add_argument("--steps", type=int, default=2000, help="of each pretraining")
    p.add_argument("--epochs", type=int, default=10, help="of each fine-tuning")
    p.add_argument("--iterations", type=int, default=40, help="of each of these epochs")
    p.add_argument(
        "--set", nargs="+", default=[], metavar="NAME=VALUE", help="settings of both pretrainings"
    )
    p.add_argument(
        "--recipe", nargs="+", default=[], metavar="NAME=VALUE", help="settings of all fine-tunings"
    )
    p.add_argument("--starts", nargs="+", default=list(STARTS), choices=list(STARTS))
    p.add_argument("--json", type=Path)
    return p


def main() -> None:
    arguments = parser().parse_args()
    environment = {
        **os.environ,
        "nnUNet_raw": str(arguments.out / "raw"),
        "nnUNet_preprocessed": str(arguments.out / "preprocessed"),
        "nnUNet_results": str(arguments.out / f"results_{arguments.labeled}"),
        "nnUNet_extTrainer": with_own_trainers(),
        "nnUNet_n_proc_DA": "0",
        "nnUNet_def_n_proc": "1",
        "nnUNet_compile": "f",
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "PASSIVE",  # nnU-Net takes all cores: beside other work, do not spin
    }
    people = split_people(arguments.data)
    make_datasets(arguments.data, arguments.out, people)

    splits = arguments.out / "preprocessed" / LABELED / "splits_final.json"
    splits.parent.mkdir(parents=True, exist_ok=True)
    fold = {"train": people.training[: arguments.labeled], "val": people.test}
    splits.write_text(json.dumps([fold]))

    results = []
    for seed in arguments.seeds:
        for start in arguments.starts:
            results.append(fine_tuned(start, seed, arguments, environment))
            print(f"{start} {seed}: {results[-1].mean:.3f}", flush=True)
            if arguments.json:
                arguments.json.write_text(json.dumps([asdict(r) for r in results], indent=2))
    print_tables(results)


def split_people(data: Path) -> People:
    """Who is pretrained on, fine-tuned on and segmented: the same in every run."""
    names = sorted(
        path.name.removesuffix(".nii.gz") for path in (data / "sarcoma/labels").glob("*.nii.gz")
    )
    shuffled = [str(name) for name in np.random.default_rng(SPLIT_SEED).permutation(names)]
    labeled = shuffled[PRETRAINED_ON:]
    return People(shuffled[:PRETRAINED_ON], labeled[:MOST_LABELED], labeled[MOST_LABELED:])


def make_datasets(data: Path, out: Path, people: People) -> None:
    """Write the raw datasets as links."""
    torsos = {path.name for path in (data / "torso/images").glob("*.nii.gz")}
    torsos -= {path.name for path in (data / "torso/labels").glob("*.nii.gz")}
    for file in torsos:
        link(data / "torso/images" / file, out / "raw" / UNLABELED / "imagesTr")
    for person in people.pretraining:
        link(data / "sarcoma/images" / f"{person}.nii.gz", out / "raw" / UNLABELED / "imagesTr")

    for person in (*people.training, *people.test):
        file = f"{person}.nii.gz"
        link(data / "sarcoma/images" / file, out / "raw" / LABELED / "imagesTr")
        link(data / "sarcoma/labels" / file, out / "raw" / LABELED / "labelsTr", ending="")

    channels = {"channel_names": {"0": "CT"}, "file_ending": ".nii.gz"}
    (out / "raw" / UNLABELED / "dataset.json").write_text(json.dumps(channels))
    labels = {
        "labels": {"background": 0, "tumour": 1},
        "numTraining": len(people.training) + len(people.test),
    }
    (out / "raw" / LABELED / "dataset.json").write_text(json.dumps({**channels, **labels}))


def link(file: Path, folder: Path, ending: str = "_0000") -> None:
    """Link a volume into a folder of a raw dataset, once."""
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / file.name.replace(".nii.gz", f"{ending}.nii.gz")
    if not target.exists():
        target.symlink_to(file.resolve())


def fine_tuned(
    start: str, seed: int, arguments: argparse.Namespace, environment: dict[str, str]
) -> Result:
    """Fine-tune from a start, and score the test people."""
    pretraining, trainer = STARTS[start]
    run = "_".join(
        [arguments.encoder, pretraining, str(arguments.steps), *slugs(arguments.set), str(seed)]
    )
    length = f"{arguments.epochs}x{arguments.iterations}"
    plans = "_".join([run, length, *slugs(arguments.recipe)])

    weights = pretrained(pretraining, seed, run, arguments, environment)
    if not (arguments.out / "preprocessed" / LABELED / f"{plans}.json").exists():
        recipe = [*RECIPE, f"seed={seed}", *arguments.recipe]
        call(
            f"alice-plan -d 26 -weights {weights} -n {plans} -epochs {arguments.epochs} "
            f"-iterations {arguments.iterations} -batch 2 -np 1 --set {' '.join(recipe)}",
            environment,
        )
        call(f"nnUNetv2_preprocess -d 26 -plans_name {plans} -c {CONFIGURATION} -np 1", environment)

    results = Path(environment["nnUNet_results"]) / LABELED
    fold = results / f"{trainer}__{plans}__{CONFIGURATION}" / "fold_0"
    summary = fold / "validation" / "summary.json"
    if not summary.exists():
        going_on = "--c" if (fold / "checkpoint_latest.pth").exists() else ""
        call(
            f"nnUNetv2_train 26 {CONFIGURATION} 0 -tr {trainer} -p {plans} -device cpu {going_on}",
            environment,
        )

    cases = json.loads(summary.read_text())["metric_per_case"]
    return Result(
        start,
        seed,
        {Path(case["reference_file"]).name: case["metrics"]["1"]["Dice"] for case in cases},
    )


def pretrained(
    name: str, seed: int, run: str, arguments: argparse.Namespace, environment: dict[str, str]
) -> Path:
    """The checkpoint of a pretraining, which runs if it is not there."""
    results = arguments.out / "pretrained" / run
    checkpoint = results / UNLABELED / RUNS / arguments.encoder / FINAL
    if not checkpoint.exists():
        settings = [f"seed={seed}", f"iterations={arguments.steps}", *PRETRAININGS[name]]
        settings += arguments.set
        call(
            f"alice-pretrain -d 25 -encoder {arguments.encoder} -preset tiny -device cpu -np 1 "
            f"--c --set {' '.join(settings)}",
            {**environment, "nnUNet_results": str(results)},
        )
    return checkpoint


def slugs(assignments: list[str]) -> list[str]:
    """Settings as parts of a name."""
    return [re.sub(r"\W", "", assignment) for assignment in assignments]


def call(command: str, environment: dict[str, str]) -> None:
    """Run a command; what it prints is shown only where it fails."""
    done = subprocess.run(command.split(), env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(
            f"{command}\nended with code {done.returncode}:\n{done.stdout[-3000:]}\n"
            f"{done.stderr[-3000:]}"
        )


def print_tables(results: list[Result]) -> None:
    """Mean Dice of each run in Markdown, and differences from random weights."""
    seeds = list(dict.fromkeys(r.seed for r in results))
    means = {(r.start, r.seed): r.mean for r in results}
    starts = list(dict.fromkeys(r.start for r in results))

    print("\n| start | " + " | ".join(f"seed {seed}" for seed in seeds) + " | mean |")
    print("|---|" + "---|" * (len(seeds) + 1))
    for start in starts:
        row = [means[start, seed] for seed in seeds]
        print(f"| {start} | {' | '.join(f'{v:.3f}' for v in row)} | {np.mean(row):.3f} |")

    others = [start for start in starts if start != "scratch"] if "scratch" in starts else []
    for start in others:
        gains = dice_of(results, start) - dice_of(results, "scratch")
        each = ", ".join(f"{gain:+.3f}" for gain in gains.mean(1))
        p = wilcoxon(gains.mean(0)).pvalue
        print(f"\n{start} - scratch: {gains.mean():+.3f}, each seed: {each}, p = {p:.2f}")


def dice_of(results: list[Result], start: str) -> np.ndarray:
    """(seeds, test people)."""
    return np.array([list(r.dice.values()) for r in results if r.start == start])


if __name__ == "__main__":
    main()
