"""Every method of pretraining on the same encoder, data and minutes: what does the encoder learn?

    python benchmarks/methods.py DATA OUT [--encoder vit] [--minutes 5] [--seeds 0 1 2]
        [--methods alice mae ...] [--set alice:weight_dv=0 ...] [--json FILE]

DATA has images/CASE.nii.gz, and labels/CASE.nii.gz for lidc0001 and ts_example; everything without
labels is trained on. Minutes are those of one core. First, two short runs of each method say how
many CPU seconds its step takes, and the number of steps of its runs follows: other work on the
machine changes nothing. A run that is there is not repeated.

Printed, as means over the seeds: steps, CPU seconds of a step, the probe of organs between the two
labeled people (ridge classifier, and nearest neighbour), held-out crops that find their match, and
the effective rank of the encoder's visible tokens; beside them random weights.
"""

import argparse
import json
import re
import resource
import subprocess
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from collapse import PEOPLE, make_dataset

from alice_nnunet.checkpoint import load_pretraining
from alice_nnunet.model.encoders.registry import ENCODERS
from alice_nnunet.model.pretraining.registry import DEFAULT, METHODS, settings_class

SHORT, LONGER = 20, 120  # steps of two runs, whose difference in CPU time is that of the steps
BETWEEN_SETTINGS = re.compile(r",(?=[a-z_]+=)")  # not the commas in token=8,8,8
PROBES = ("probe organs", "probe retrieval", "retrieval")


@dataclass
class Result:
    """What one run gave.

    Attributes:
        arm: method, with the settings that were given to it.
        seed: of the run.
        steps: that fitted into the minutes.
        step_seconds: CPU time of a step, its data included.
        organs: share of organs that a ridge classifier names right across people.
        retrieval: share of points whose nearest neighbour in the other person is of their organ.
        matches: share of held-out crops that find their match.
        rank: effective rank of the visible tokens at the end.
        start: organs, retrieval and matches of random weights.
    """

    arm: str
    seed: int
    steps: int
    step_seconds: float
    organs: float
    retrieval: float
    matches: float
    rank: float
    start: tuple[float, float, float]


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("data", type=Path)
    p.add_argument("out", type=Path)
    p.add_argument("--encoder", default="vit", choices=list(ENCODERS))
    p.add_argument("--minutes", type=float, default=5.0)
    p.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    p.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    p.add_argument(
        "--set",
        nargs="+",
        default=[],
        metavar="METHOD:NAME=VALUE,...",
        help="a further arm: a method with other settings",
    )
    p.add_argument("--json", type=Path)
    return p


def main() -> None:
    arguments = parser().parse_args()
    environment = make_dataset(arguments.data, arguments.out)
    labeled = link_labeled(arguments.data, arguments.out)
    prepare(command_of(DEFAULT, arguments.encoder, labeled), environment)

    results = []
    seconds = {}
    for seed in arguments.seeds:
        for arm in (*trainable(arguments.methods, arguments.encoder), *arguments.set):
            command = command_of(arm, arguments.encoder, labeled)
            if arm not in seconds:
                timing = arguments.out / "timing" / f"{slug(arm)}.json"
                seconds[arm] = known_time(timing, command, environment)
            steps = max(10, round(60 * arguments.minutes / seconds[arm]))

            folder = arguments.out / f"{arguments.minutes:g}min" / f"{slug(arm)}_{seed}"
            checkpoint = run(
                [*command, "--set", f"seed={seed}", f"iterations={steps}", f"probe_every={steps}"],
                folder,
                environment,
            )
            results.append(read_result(arm, seed, seconds[arm], checkpoint))
            print(results[-1], flush=True)
            if arguments.json:
                arguments.json.write_text(json.dumps([asdict(r) for r in results], indent=2))

    print_table(results)


def trainable(methods: list[str], encoder: str) -> list[str]:
    """The methods that train an encoder."""
    size = {"crop_size": (32, 64, 64)}
    return [name for name in methods if settings_class(name).refusal(encoder, size) is None]


def slug(arm: str) -> str:
    """The name of an arm as part of a path."""
    return re.sub(r"[:,]", "_", arm).replace("=", "")


def link_labeled(data: Path, out: Path) -> Path:
    """A folder with images/ and labels/ of the labeled people alone."""
    folder = out / "labeled"
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        for person in PEOPLE:
            link = folder / kind / f"{person}.nii.gz"
            if not link.exists():
                link.symlink_to((data / kind / link.name).resolve())
    return folder


def command_of(arm: str, encoder: str, labeled: Path) -> list[str]:
    """The command of an arm, without seed and length."""
    method, _, settings = arm.partition(":")
    options = f"-d 23 -method {method} -encoder {encoder} -preset tiny -device cpu"
    return [
        "alice-pretrain",
        *options.split(),
        "-np",
        "1",
        "--c",
        "--set",
        "validate_every=1000000",
        f"probe_labels={labeled}",
        *(BETWEEN_SETTINGS.split(settings) if settings else []),
    ]


def run(command: list[str], folder: Path, environment: dict[str, str]) -> dict:
    """Run a command into a folder, or go on with it, and return its last checkpoint."""
    subprocess.run(
        command,
        env={**environment, "nnUNet_results": str(folder), "OMP_NUM_THREADS": "1"},
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return load_pretraining(next(folder.glob("*/*/*/checkpoint_final.pth")))


def prepare(command: list[str], environment: dict[str, str]) -> None:
    """Preprocess and train the matcher, by a run of one step: both are no part of a step's time."""
    with tempfile.TemporaryDirectory() as folder:
        settings = ["iterations=1", "warmup_iterations=0", "probe_every=0"]
        run([*command, "--set", *settings], Path(folder), environment)


def known_time(file: Path, command: list[str], environment: dict[str, str]) -> float:
    """CPU seconds of a step, measured once, so that an interrupted benchmark can go on."""
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(time_of_a_step(command, environment)))
    return json.loads(file.read_text())


def time_of_a_step(command: list[str], environment: dict[str, str]) -> float:
    """CPU seconds of a step with its data, without what a run takes to start."""
    spent = []
    for steps in (SHORT, LONGER):
        settings = [f"iterations={steps}", "warmup_iterations=1", "probe_every=0"]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        with tempfile.TemporaryDirectory() as folder:
            run([*command, "--set", *settings], Path(folder), environment)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent.append(after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)
    return (spent[1] - spent[0]) / (LONGER - SHORT)


def read_result(arm: str, seed: int, seconds: float, checkpoint: dict) -> Result:
    """What the history of a run says."""
    history = checkpoint["history"]
    first = [history[name][0][1] for name in PROBES]
    last = [history[name][-1][1] for name in PROBES]
    return Result(
        arm=arm,
        seed=seed,
        steps=checkpoint["step"],
        step_seconds=seconds,
        organs=last[0],
        retrieval=last[1],
        matches=last[2],
        rank=history["rank V"][-1][1],
        start=(first[0], first[1], first[2]),
    )


def print_table(results: list[Result]) -> None:
    """A line for each arm, in Markdown, and one for random weights."""
    print("| method | seeds | steps | CPU s a step | organs | retrieval | matches | rank V |")
    print("|---|---|---|---|---|---|---|---|")

    for arm in dict.fromkeys(result.arm for result in results):
        rows = [result for result in results if result.arm == arm]
        steps = round(np.mean([row.steps for row in rows]))
        seconds = np.mean([row.step_seconds for row in rows])
        print(
            f"| {arm} | {len(rows)} | {steps:,} | {seconds:.3f} | "
            f"{spread([row.organs for row in rows])} | {spread([row.retrieval for row in rows])} | "
            f"{spread([row.matches for row in rows])} | {np.mean([row.rank for row in rows]):.1f} |"
        )

    starts = {row.seed: row.start for row in results if row.arm == DEFAULT} or {
        row.seed: row.start for row in results
    }
    columns = [spread(list(column)) for column in zip(*starts.values())]
    print(f"| random weights | {len(starts)} | 0 | | {' | '.join(columns)} | |")


def spread(values: list[float]) -> str:
    """Mean, and the standard deviation where there are several."""
    if len(values) < 2:
        return f"{values[0]:.2f}"
    return f"{np.mean(values):.2f} ± {np.std(values, ddof=1):.2f}"


if __name__ == "__main__":
    main()
