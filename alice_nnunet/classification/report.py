"""The results of all runs as tables: text, CSV, JSON, and two sets of runs in pairs."""

import csv
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np

from alice_nnunet.classification.metrics import Scores, scores_of
from alice_nnunet.errors import UserError
from alice_nnunet.evaluation.summary import Difference, Spread, difference, spread
from alice_nnunet.files import replacing

RUNS = "runs"  # folder of the runs
RESULT = "result.json"
MODEL = "model.pth"
CONFIG = "config.json"
METRICS = tuple(field.name for field in fields(Scores))


@dataclass(frozen=True)
class RunResult:
    """What a run predicted for its test cases.

    Attributes:
        name: of the run, such as percent100_seed0.
        percent: of the labels for training.
        number: seed or fold.
        best_step: with the best validation AUC.
        validation_auc: of that step.
        cases: of the test.
        labels: (cases,).
        probabilities: (cases, classes).
    """

    name: str
    percent: int
    number: int
    best_step: int
    validation_auc: float
    cases: tuple[str, ...]
    labels: np.ndarray
    probabilities: np.ndarray

    @property
    def scores(self) -> Scores:
        return scores_of(self.labels, self.probabilities)

    def to_dict(self) -> dict:
        """Plain values for a file."""
        return {
            **asdict(self),
            "cases": list(self.cases),
            "labels": self.labels.tolist(),
            "probabilities": self.probabilities.tolist(),
        }


def read_result(path: Path) -> RunResult:
    """Read the result of a run. Raises UserError if the file is broken."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        content["cases"] = tuple(content["cases"])
        content["labels"] = np.array(content["labels"])
        content["probabilities"] = np.array(content["probabilities"], float)
        known = {field.name for field in fields(RunResult)}
        return RunResult(**{name: content[name] for name in known})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} cannot be read ({error}): remove it to repeat the run") from None


def read_results(folder: Path) -> list[RunResult]:
    """The finished runs in a folder of alice-classify train, by percent and number.

    Raises:
        UserError: there are none.
    """
    found = [read_result(path) for path in (folder / RUNS).glob(f"*/{RESULT}")]
    if not found:
        raise UserError(f"{folder} has no finished runs of alice-classify train")
    return sorted(found, key=lambda run: (run.percent, run.number))


def by_percent(results: Iterable[RunResult]) -> dict[int, list[RunResult]]:
    """The runs of each share of the labels."""
    groups: dict[int, list[RunResult]] = {}
    for run in results:
        groups.setdefault(run.percent, []).append(run)
    return groups


def summary(results: Iterable[RunResult]) -> dict[int, dict[str, Spread]]:
    """Percent -> metric -> mean and spread over runs."""
    table = {}
    for percent, runs in by_percent(results).items():
        scores = [run.scores for run in runs]
        table[percent] = {
            metric: spread(np.array([as_number(getattr(s, metric)) for s in scores]))
            for metric in METRICS
        }
    return table


def as_number(value: float | None) -> float:
    return np.nan if value is None else value


def summary_text(results: list[RunResult]) -> str:
    """Mean and standard deviation over runs, in percent of the unit."""
    lines = [f"{'labels':>7}  {'runs':>4}  {'AUC':>14}  {'balanced accuracy':>17}"]
    for percent, row in summary(results).items():
        cells = [with_spread(row["auc"]), with_spread(row["balanced_accuracy"])]
        lines.append(f"{percent:>5} %  {row['auc'].n:>4}  {cells[0]:>14}  {cells[1]:>17}")
    return "\n".join(lines)


def with_spread(value: Spread) -> str:
    """100 times the mean, with the standard deviation where there are several runs."""
    mean = "-" if value.mean is None else f"{100 * value.mean:.2f}"
    return mean if value.std is None else f"{mean} +- {100 * value.std:.2f}"


def write_table(path: Path, head: Iterable[str], rows: Iterable[Iterable]) -> None:
    """Write a CSV file, completely or not at all."""
    with replacing(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(head)
        writer.writerows(rows)


def write_runs(path: Path, results: list[RunResult]) -> None:
    """A line for each run, with all scores of its test cases."""
    rows = []
    for run in results:
        values = [getattr(run.scores, metric) for metric in METRICS]
        cells = ["" if value is None else f"{value:.6f}" for value in values]
        chosen = [run.best_step, f"{run.validation_auc:.6f}"]
        rows.append([run.name, run.percent, run.number, len(run.cases), *chosen, *cells])
    head = ["run", "percent", "number", "test_cases", "best_step", "validation_auc", *METRICS]
    write_table(path, head, rows)


def write_predictions(path: Path, results: list[RunResult], classes: tuple[str, ...]) -> None:
    """A line for each run and each of its test cases."""
    rows = []
    for run in results:
        for case, label, probabilities in zip(run.cases, run.labels, run.probabilities):
            called = classes[int(probabilities.argmax())]
            values = [f"{p:.6f}" for p in probabilities]
            rows.append([run.name, case, classes[label], called, *values])
    head = ["run", "case", "label", "predicted", *(f"probability {name}" for name in classes)]
    write_table(path, head, rows)


def plain_summary(results: list[RunResult]) -> dict:
    """The summary as JSON."""
    return {
        str(percent): {metric: asdict(value) for metric, value in row.items()}
        for percent, row in summary(results).items()
    }


def compare(first: list[RunResult], second: list[RunResult]) -> dict[int, Difference]:
    """AUC of the first less that of the second, run by run, for each percent that both have.

    Raises:
        UserError: the runs are not pairs: they have none in common, or other test cases.
    """
    theirs = {(run.percent, run.number): run for run in second}
    pairs = [(run, theirs[key]) for run in first if (key := (run.percent, run.number)) in theirs]
    if not pairs:
        raise UserError("the two folders have no run of the same percent and seed in common")

    for ours, other in pairs:
        if ours.cases != other.cases or not np.array_equal(ours.labels, other.labels):
            raise UserError(
                f"{ours.name} has other test cases in the two folders: compare runs of the same "
                f"data set and labels"
            )

    table = {}
    for percent in sorted({ours.percent for ours, _ in pairs}):
        chosen = [(o.scores.auc, t.scores.auc) for o, t in pairs if o.percent == percent]
        ours, others = np.array(chosen).T
        table[percent] = difference(ours, others)
    return table


def comparison_text(title: str, table: dict[int, Difference]) -> str:
    """First less second in points of AUC, with Wilcoxon's p."""
    lines = [title, f"{'labels':>7}  {'AUC, points':>11}  {'p':>8}  {'runs':>4}"]
    for percent, row in table.items():
        points = "-" if row.mean is None else f"{100 * row.mean:+.2f}"
        p = "-" if row.p is None else f"{row.p:.2g}"
        lines.append(f"{percent:>5} %  {points:>11}  {p:>8}  {row.n:>4}")
    lines.append("p: Wilcoxon signed-rank over runs, two-sided; test sets of runs overlap")
    return "\n".join(lines)
