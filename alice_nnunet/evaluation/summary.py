"""Mean and spread over cases, per organ and over organs, and the paired comparison of two sets of predictions."""

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
Scores = dict[str, list[Score]]  # of each case, in the order of the organ set


@dataclass(frozen=True)
class Spread:
    """mean and std (sample standard deviation, n - 1) over n values; None where there are too few."""

    mean: float | None
    std: float | None
    n: int


@dataclass(frozen=True)
class Difference:
    """Of the same cases in two sets: mean of first less second over n cases, and p of the two-sided Wilcoxon signed-rank test."""

    mean: float | None
    p: float | None
    n: int


def values_of(scores: Scores, metric: str) -> dict[str, np.ndarray]:
    """Organ -> one value per case, NaN where it does not count; then MEAN -> each case's mean over the organs that count."""
    cases = list(scores.values())
    values = {
        score.organ: np.array([getattr(case[i], metric) for case in cases])
        for i, score in enumerate(cases[0])
    }
    return {**values, MEAN: mean_over_organs(np.stack(list(values.values())))}


def mean_over_organs(values: np.ndarray) -> np.ndarray:
    """(organs, cases) -> (cases,); NaN for a case without any value."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # numpy's, where all are NaN
        return np.nanmean(values, axis=0)


def spread(values: np.ndarray) -> Spread:
    """NaNs do not count."""
    known = values[~np.isnan(values)]
    return Spread(
        float(known.mean()) if len(known) else None,
        float(known.std(ddof=1)) if len(known) > 1 else None,
        len(known),
    )


def difference(first: np.ndarray, second: np.ndarray) -> Difference:
    """Two arrays of the same cases; a case that does not count in one of them is left out. p is 1 where all are equal."""
    pairs = (first - second)[~np.isnan(first - second)]
    if not len(pairs):
        return Difference(None, None, 0)
    p = float(wilcoxon(pairs).pvalue) if pairs.any() else 1.0
    return Difference(float(pairs.mean()), p, len(pairs))


def summarise(scores: Scores) -> dict[str, dict[str, Spread]]:
    """Organ, then MEAN -> metric -> Spread."""
    values = {metric: values_of(scores, metric) for metric in METRICS}
    return {
        organ: {metric: spread(values[metric][organ]) for metric in METRICS}
        for organ in values["dsc"]
    }


def compare(first: Scores, second: Scores) -> dict[str, dict[str, Difference]]:
    """Organ, then MEAN -> metric -> Difference, over the cases that both have."""
    cases = [case for case in first if case in second]
    a, b = ({case: scores[case] for case in cases} for scores in (first, second))
    values = {metric: (values_of(a, metric), values_of(b, metric)) for metric in METRICS}
    return {
        organ: {metric: difference(x[organ], y[organ]) for metric, (x, y) in values.items()}
        for organ in values["dsc"][0]
    }


def as_dict(organ_set: OrganSet, scores: dict[str, Scores], left_out: tuple[str, ...]) -> dict:
    """Everything in one JSON object. scores: of each folder of predictions; with two of them, their comparison too."""
    organs = {
        organ.name: {
            "labels": list(organ.labels),
            "tolerance_mm": organ.tolerance,
            "reference_slices_only": organ.reference_slices_only,
        }
        for organ in organ_set.organs
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
    """The summary of one folder of predictions."""
    summary = summarise(scores)
    mean = summary.pop(MEAN)
    of_organs = {
        metric: [row[metric].mean for row in summary.values() if row[metric].n]
        for metric in METRICS
    }
    return {
        "organs": plain(summary),
        "mean_over_organs_of_each_case": {metric: asdict(mean[metric]) for metric in METRICS},
        "foreground_mean_as_nnunet": {
            metric: float(np.mean(means)) if means else None for metric, means in of_organs.items()
        },
    }


def plain(rows: dict) -> dict:
    """Organ -> metric -> Spread or Difference, as dicts."""
    return {
        organ: {metric: asdict(value) for metric, value in row.items()}
        for organ, row in rows.items()
    }


def write_csv(path: Path, scores: dict[str, Scores]) -> None:
    """One line per folder of predictions, case and organ; an empty cell is a value that does not count."""
    with replacing(path) as partial, open(partial, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(
            ["predictions", "case", "organ", "dsc", "nsd", "reference_voxels", "predicted_voxels"]
        )
        for folder, of_folder in scores.items():
            for case, rows in of_folder.items():
                for row in rows:
                    metrics = [
                        "" if np.isnan(value) else f"{value:.6f}" for value in (row.dsc, row.nsd)
                    ]
                    writer.writerow(
                        [
                            folder,
                            case,
                            row.organ,
                            *metrics,
                            row.reference_voxels,
                            row.predicted_voxels,
                        ]
                    )
