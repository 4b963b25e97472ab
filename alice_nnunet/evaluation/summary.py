"""Mean and spread over cases, per organ and over organs; paired comparison of two predictions."""

import csv
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from scipy.stats import wilcoxon

from alice_nnunet.evaluation.organs import OrganSet
from alice_nnunet.evaluation.scores import Score
from alice_nnunet.files import replacing

METRICS = ("dsc", "nsd")
MEAN = "mean over organs"
COLUMNS = ("predictions", "case", "organ", "dsc", "nsd", "reference_voxels", "predicted_voxels")

Scores = dict[str, list[Score]]  # case -> its scores in the order of the organ set


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation (n - 1) over n values; None where there are too few."""

    mean: float | None
    std: float | None
    n: int


@dataclass(frozen=True)
class Difference:
    """First less second of the same n cases.

    Attributes:
        mean: of the differences, None without a case.
        p: of the two-sided Wilcoxon signed-rank test, None without a case.
        n: cases that count in both.
    """

    mean: float | None
    p: float | None
    n: int


def values_of(scores: Scores, metric: str) -> dict[str, np.ndarray]:
    """The values of a metric, (cases,) of every organ; NaN where a case does not count.

    The last entry, MEAN, is each case's mean over the organs that count.
    """
    cases = list(scores.values())
    values = {}
    for i, score in enumerate(cases[0]):
        values[score.organ] = np.array([getattr(case[i], metric) for case in cases])

    values[MEAN] = mean_over_organs(np.stack(list(values.values())))
    return values


def mean_over_organs(values: np.ndarray) -> np.ndarray:
    """(organs, cases) -> (cases,); NaN for a case without any value."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # numpy's where all values are NaN
        return np.nanmean(values, axis=0)


def spread(values: np.ndarray) -> Spread:
    """Mean and standard deviation of the values that are not NaN."""
    known = values[~np.isnan(values)]
    mean = float(known.mean()) if len(known) else None
    std = float(known.std(ddof=1)) if len(known) > 1 else None
    return Spread(mean, std, len(known))


def difference(first: np.ndarray, second: np.ndarray) -> Difference:
    """Paired comparison of two arrays of the same cases.

    A case that is NaN in one of them is left out. p is 1 where all values are equal.
    """
    differences = first - second
    differences = differences[~np.isnan(differences)]
    if not len(differences):
        return Difference(None, None, 0)
    p = float(wilcoxon(differences).pvalue) if differences.any() else 1.0
    return Difference(float(differences.mean()), p, len(differences))


def summarise(scores: Scores) -> dict[str, dict[str, Spread]]:
    """Organ, last MEAN -> metric -> Spread."""
    values = {metric: values_of(scores, metric) for metric in METRICS}
    return {
        organ: {metric: spread(values[metric][organ]) for metric in METRICS}
        for organ in values["dsc"]
    }


def compare(first: Scores, second: Scores) -> dict[str, dict[str, Difference]]:
    """Organ, last MEAN -> metric -> Difference, over the cases that both have."""
    cases = [case for case in first if case in second]
    ours = {case: first[case] for case in cases}
    theirs = {case: second[case] for case in cases}

    comparison: dict[str, dict[str, Difference]] = {}
    for metric in METRICS:
        our_values = values_of(ours, metric)
        their_values = values_of(theirs, metric)
        for organ, values in our_values.items():
            row = comparison.setdefault(organ, {})
            row[metric] = difference(values, their_values[organ])
    return comparison


def as_dict(organ_set: OrganSet, scores: dict[str, Scores], left_out: tuple[str, ...]) -> dict:
    """All results as one JSON object.

    Args:
        organ_set: what was scored.
        scores: folder of predictions -> its scores; two folders are compared.
        left_out: cases that were not evaluated.
    """
    organs = {}
    for organ in organ_set.organs:
        organs[organ.name] = {
            "labels": list(organ.labels),
            "tolerance_mm": organ.tolerance,
            "reference_slices_only": organ.reference_slices_only,
        }

    content = {
        "organ_set": organ_set.name,
        "both_empty": None if np.isnan(organ_set.both_empty) else organ_set.both_empty,
        "ignore_label": organ_set.ignore,
        "organs": organs,
        "cases_left_out": list(left_out),
        "std": "sample standard deviation over cases (n - 1)",
        "predictions": {folder: folder_dict(of_folder) for folder, of_folder in scores.items()},
    }
    if len(scores) == 2:
        content["first_less_second"] = plain(compare(*scores.values()))
    return content


def folder_dict(scores: Scores) -> dict:
    """The summary of one folder of predictions as JSON."""
    organs = summarise(scores)
    mean_of_cases = organs.pop(MEAN)

    mean_of_organs = {}
    for metric in METRICS:
        means = [row[metric].mean for row in organs.values()]
        known = [mean for mean in means if mean is not None]
        mean_of_organs[metric] = float(np.mean(known)) if known else None

    return {
        "organs": plain(organs),
        "mean_over_organs_of_each_case": {
            metric: asdict(mean_of_cases[metric]) for metric in METRICS
        },
        "foreground_mean_as_nnunet": mean_of_organs,
    }


def plain(rows: dict) -> dict:
    """Organ -> metric -> Spread or Difference, as dicts."""
    return {
        organ: {metric: asdict(value) for metric, value in row.items()}
        for organ, row in rows.items()
    }


def write_csv(path: Path, scores: dict[str, Scores]) -> None:
    """One line per folder of predictions, case and organ.

    A value that does not count is an empty cell.
    """
    with replacing(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for folder, of_folder in scores.items():
            for case, rows in of_folder.items():
                for row in rows:
                    values = [cell(row.dsc), cell(row.nsd), row.reference_voxels]
                    writer.writerow([folder, case, row.organ, *values, row.predicted_voxels])


def cell(value: float) -> str:
    return "" if np.isnan(value) else f"{value:.6f}"
