"""How good predictions are: scikit-learn's scores, and the calibration error."""

from dataclasses import dataclass

import numpy as np
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    confusion_matrix,
    log_loss,
    recall_score,
    roc_auc_score,
)

BINS = 10  # of probabilities, for the calibration


@dataclass(frozen=True)
class Scores:
    """Of the test cases of a run, or of several.

    Attributes:
        auc: area under the ROC curve; of several classes the mean of each against the rest.
        accuracy: share of cases whose most probable class is right.
        balanced_accuracy: mean of that over classes.
        sensitivity: of two classes the share of positive cases called positive, else None.
        specificity: of two classes the share of negative cases called negative, else None.
        brier: mean squared distance of the probabilities from the truth, summed over classes.
        log_loss: mean cross entropy.
        calibration_error: mean distance of confidence from accuracy, in BINS of confidence.
    """

    auc: float
    accuracy: float
    balanced_accuracy: float
    sensitivity: float | None
    specificity: float | None
    brier: float
    log_loss: float
    calibration_error: float


def scores_of(labels: np.ndarray, probabilities: np.ndarray) -> Scores:
    """All scores.

    Args:
        labels: (cases,), every class at least once.
        probabilities: (cases, classes).
    """
    classes = probabilities.shape[1]
    called = probabilities.argmax(1)
    truth = np.eye(classes)[labels]
    is_binary = classes == 2

    return Scores(
        auc=mean_auc(labels, probabilities),
        accuracy=float(accuracy_score(labels, called)),
        balanced_accuracy=float(balanced_accuracy_score(labels, called)),
        sensitivity=float(recall_score(labels, called)) if is_binary else None,
        specificity=float(recall_score(labels, called, pos_label=0)) if is_binary else None,
        brier=float(((probabilities - truth) ** 2).sum(1).mean()),
        log_loss=mean_log_loss(labels, probabilities),
        calibration_error=calibration_error(labels, probabilities),
    )


def mean_auc(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """The area under the ROC curve; of several classes the mean of each against the rest."""
    if probabilities.shape[1] == 2:
        return float(roc_auc_score(labels, probabilities[:, 1]))
    classes = range(probabilities.shape[1])
    return float(np.mean([roc_auc_score(labels == c, probabilities[:, c]) for c in classes]))


def mean_log_loss(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """The mean cross entropy."""
    return float(log_loss(labels, probabilities, labels=range(probabilities.shape[1])))


def calibration_error(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Expected calibration error: |accuracy - confidence|, weighted by the cases of each bin."""
    confidence = probabilities.max(1)
    right = probabilities.argmax(1) == labels
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)

    error = 0.0
    for number in np.unique(bins):
        inside = bins == number
        error += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    return float(error)


def confusion(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """(classes, classes) cases: rows are the truth, columns the most probable class."""
    classes = range(probabilities.shape[1])
    return confusion_matrix(labels, probabilities.argmax(1), labels=list(classes))
