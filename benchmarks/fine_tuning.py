"""Does pretraining improve segmentation where few people are labeled? Dice of two tasks.

    python benchmarks/fine_tuning.py DATA OUT [--task sarcoma] [--encoder vit] [--seeds 0 1 2]
        [--labeled 8] [--steps 2000] [--epochs 10] [--iterations 40] [--set token=8,8,8 ...]
        [--recipe learning_rate=1e-4 ...] [--device cpu] [--json FILE]

DATA has the folders torso and sarcoma, each with images/CASE.nii.gz and labels/CASE.nii.gz.

    sarcoma  Torsos without labels and 16 people with a sarcoma, whose labels are not used, are
             pretrained on. Of the other 20 people with a sarcoma, the first of 8 are fine-tuned
             on, and 12 are segmented.
    organs   Torsos without labels are pretrained on. Of the two people with a whole liver, each
             is segmented by a network that is fine-tuned on the other and on a slab of 40 mm.

Starts: Alice's default, reconstruction alone (MIM only), and random weights, all with the same
network, plans, recipe, seed and number of steps. Every step is a command that a user would type.
What is there is not repeated.

Printed: mean Dice over people and labels for each start and seed, the means of each label, and the
difference from random weights: its mean, that of each seed, and Wilcoxon's p over people and labels
(means over seeds).
"""

import argparse
import json
import os
import re
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from fine_tuning_tasks import MOST_LABELED, TASKS, Task, write_datasets
from scipy.stats import wilcoxon

from alice_nnunet.environment import with_own_trainers
from alice_nnunet.model.encoders.registry import ENCODERS
from alice_nnunet.names import CONFIGURATION, FINAL, RUNS

RECIPE = ("optimizer=AdamW", "augmentation=none", "precision=fp32", "learning_rate=1e-3")

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
        dice: of each test person, by the label.
    """

    start: str
    seed: int
    dice: dict[str, dict[str, float]]

    @property
    def scores(self) -> np.ndarray:
        """(people, labels)."""
        return np.array([list(of_person.values()) for of_person in self.dice.values()])


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("data", type=Path)
    p.add_argument("out", type=Path)
    p.add_argument("--task", default="sarcoma", choices=list(TASKS))
    p.add_argument("--encoder", default="vit", choices=list(ENCODERS))
    p.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    p.add_argument(
        "--labeled",
        type=int,
        default=MOST_LABELED,
        choices=range(1, MOST_LABELED + 1),
        help="people with a sarcoma who are fine-tuned on",
    )
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
    p.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="of all trainings")
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
    task = TASKS[arguments.task](arguments.data, arguments.labeled)
    write_datasets(task, arguments.out / "raw")

    splits = arguments.out / "preprocessed" / task.labeled / "splits_final.json"
    splits.parent.mkdir(parents=True, exist_ok=True)
    splits.write_text(json.dumps([{"train": f.training, "val": f.test} for f in task.folds]))

    results = []
    for seed in arguments.seeds:
        for start in arguments.starts:
            results.append(fine_tuned(task, start, seed, arguments, environment))
            print(f"{start} {seed}: {results[-1].scores.mean():.3f}", flush=True)
            if arguments.json:
                arguments.json.write_text(json.dumps([asdict(r) for r in results], indent=2))
    print_tables(results, list(task.labels))


def fine_tuned(
    task: Task, start: str, seed: int, arguments: argparse.Namespace, environment: dict[str, str]
) -> Result:
    """Fine-tune from a start in each fold, and score the test people."""
    pretraining, trainer = STARTS[start]
    run = "_".join(
        [arguments.encoder, pretraining, str(arguments.steps), *slugs(arguments.set), str(seed)]
    )
    length = f"{arguments.epochs}x{arguments.iterations}"
    plans = "_".join([run, length, *slugs(arguments.recipe)])
    number = int(task.labeled[len("Dataset") :].split("_")[0])

    weights = pretrained(task, pretraining, seed, run, arguments, environment)
    if not (arguments.out / "preprocessed" / task.labeled / f"{plans}.json").exists():
        recipe = [*RECIPE, f"seed={seed}", *arguments.recipe]
        call(
            f"alice-plan -d {number} -weights {weights} -n {plans} -epochs {arguments.epochs} "
            f"-iterations {arguments.iterations} -batch 2 -np 1 --set {' '.join(recipe)}",
            environment,
        )
        call(
            f"nnUNetv2_preprocess -d {number} -plans_name {plans} -c {CONFIGURATION} -np 1",
            environment,
        )

    results = Path(environment["nnUNet_results"]) / task.labeled
    dice = {}
    for fold in range(len(task.folds)):
        folder = results / f"{trainer}__{plans}__{CONFIGURATION}" / f"fold_{fold}"
        summary = folder / "validation" / "summary.json"
        if not summary.exists():
            going_on = "--c" if (folder / "checkpoint_latest.pth").exists() else ""
            call(
                f"nnUNetv2_train {number} {CONFIGURATION} {fold} -tr {trainer} -p {plans} "
                f"-device {arguments.device} {going_on}",
                environment,
            )
        dice |= dice_in(summary, list(task.labels))
    return Result(start, seed, dice)


def dice_in(summary: Path, labels: list[str]) -> dict[str, dict[str, float]]:
    """Dice of each person and label in nnU-Net's summary of a validation."""
    return {
        Path(case["reference_file"]).name.removesuffix(".nii.gz"): {
            label: case["metrics"][str(number)]["Dice"] for number, label in enumerate(labels, 1)
        }
        for case in json.loads(summary.read_text())["metric_per_case"]
    }


def pretrained(
    task: Task,
    name: str,
    seed: int,
    run: str,
    arguments: argparse.Namespace,
    environment: dict[str, str],
) -> Path:
    """The checkpoint of a pretraining, which runs if it is not there."""
    results = arguments.out / "pretrained" / run
    checkpoint = results / task.unlabeled / RUNS / arguments.encoder / FINAL
    if not checkpoint.exists():
        settings = [f"seed={seed}", f"iterations={arguments.steps}", *PRETRAININGS[name]]
        settings += arguments.set
        call(
            f"alice-pretrain -d {task.unlabeled} -encoder {arguments.encoder} -preset tiny "
            f"-device {arguments.device} -np 1 --c --set {' '.join(settings)}",
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


def print_tables(results: list[Result], labels: list[str]) -> None:
    """Mean Dice of each run and of each label in Markdown, and differences from random weights."""
    seeds = list(dict.fromkeys(r.seed for r in results))
    starts = list(dict.fromkeys(r.start for r in results))
    columns = ["start", *(f"seed {seed}" for seed in seeds), "mean"]
    print_row(columns)
    print_row(["---"] * len(columns))
    for start in starts:
        of_seeds = dice_of(results, start).mean((1, 2))
        print_row([start, *(f"{mean:.3f}" for mean in (*of_seeds, of_seeds.mean()))])

    people = list(results[0].dice)
    columns = ["person", "label", *starts]
    print()
    print_row(columns)
    print_row(["---"] * len(columns))
    for p, person in enumerate(people):
        for n, label in enumerate(labels):
            means = [dice_of(results, start)[:, p, n].mean() for start in starts]
            print_row([person, label, *(f"{mean:.3f}" for mean in means)])

    others = [start for start in starts if start != "scratch"] if "scratch" in starts else []
    for start in others:
        gains = dice_of(results, start) - dice_of(results, "scratch")
        each = ", ".join(f"{gain:+.3f}" for gain in gains.mean((1, 2)))
        p_value = wilcoxon(gains.mean(0).ravel()).pvalue
        print(f"\n{start} - scratch: {gains.mean():+.3f}, each seed: {each}, p = {p_value:.3f}")


def print_row(cells: list[str]) -> None:
    """Print a row of a table in Markdown."""
    print(f"| {' | '.join(cells)} |")


def dice_of(results: list[Result], start: str) -> np.ndarray:
    """(seeds, test people, labels)."""
    return np.array([r.scores for r in results if r.start == start])


if __name__ == "__main__":
    main()
