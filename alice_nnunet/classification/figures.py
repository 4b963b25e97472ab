"""Plots of all runs: ROC curves, confusion matrix, calibration."""

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from sklearn.calibration import calibration_curve
from sklearn.metrics import roc_curve

from alice_nnunet.classification.metrics import BINS, confusion
from alice_nnunet.classification.report import RunResult, by_percent, summary, with_spread

COLOURS = colormaps["tab10"]


def one_against_rest(classes: int) -> list[int]:
    """The classes whose curves are drawn: of two the positive one."""
    return [1] if classes == 2 else list(range(classes))


def roc_figure(results: list[RunResult], classes: tuple[str, ...]) -> Figure:
    """The ROC curve of every run, of several classes each against the rest in its own panel."""
    shown = one_against_rest(len(classes))
    figure = Figure(figsize=(5.5 * len(shown), 5.5), layout="constrained")
    aucs = summary(results)

    for axis, label in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown):
        for colour, (percent, runs) in enumerate(by_percent(results).items()):
            text = f"{percent} % of the labels: AUC {with_spread(aucs[percent]['auc'])} %"
            for number, run in enumerate(runs):
                wrong, right, _ = roc_curve(run.labels == label, run.probabilities[:, label])
                style = {"color": COLOURS(colour), "alpha": 0.5, "linewidth": 1}
                axis.plot(wrong, right, **style, label=text if number == 0 else None)
        axis.plot([0, 1], [0, 1], ":", color="grey")
        axis.set_xlabel("1 - specificity")
        axis.set_ylabel("sensitivity")
        axis.set_title(f"{classes[label]} against the rest", fontsize=10)
        axis.set_aspect("equal")
        axis.legend(loc="lower right", fontsize=8)
    return figure


def confusion_figure(results: list[RunResult], classes: tuple[str, ...]) -> Figure:
    """Truth against prediction, summed over runs, a panel for each percent."""
    groups = by_percent(results)
    side = 1.5 + 0.9 * len(classes)
    figure = Figure(figsize=(side * len(groups), side), layout="constrained")

    for axis, (percent, runs) in zip(
        figure.subplots(1, len(groups), squeeze=False)[0], groups.items()
    ):
        matrices = [confusion(run.labels, run.probabilities) for run in runs]
        matrix = np.sum(matrices, axis=0)
        shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
        axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        for row, column in np.ndindex(matrix.shape):
            colour = "white" if shares[row, column] > 0.5 else "black"
            style = {"ha": "center", "va": "center", "color": colour, "fontsize": 9}
            axis.text(column, row, str(matrix[row, column]), **style)
        axis.set_xticks(range(len(classes)), classes, fontsize=8)
        axis.set_yticks(range(len(classes)), classes, fontsize=8)
        axis.set_xlabel("predicted")
        axis.set_ylabel("label")
        axis.set_title(f"{percent} % of the labels, {len(runs)} runs", fontsize=9)
    return figure


def calibration_figure(results: list[RunResult], classes: tuple[str, ...]) -> Figure:
    """Share of cases of a class over its predicted probability, all runs of a percent together."""
    shown = one_against_rest(len(classes))
    figure = Figure(figsize=(5 * len(shown), 5), layout="constrained")

    for axis, label in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown):
        for colour, (percent, runs) in enumerate(by_percent(results).items()):
            truth = np.concatenate([run.labels == label for run in runs])
            probability = np.concatenate([run.probabilities[:, label] for run in runs])
            found, said = calibration_curve(truth, probability, n_bins=BINS)
            text = f"{percent} % of the labels"
            axis.plot(said, found, "o-", color=COLOURS(colour), label=text)
        axis.plot([0, 1], [0, 1], ":", color="grey")
        axis.set_xlabel(f"predicted probability of {classes[label]}")
        axis.set_ylabel("share of the cases")
        axis.legend(fontsize=8)
    return figure
