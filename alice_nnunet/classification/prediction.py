"""Probabilities of new scans: the mean over all runs of a model folder."""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from alice_nnunet.checks.findings import Decisions
from alice_nnunet.classification.network import SavedClassifier, load_classifier
from alice_nnunet.classification.report import MODEL, RUNS, read_results, write_table
from alice_nnunet.classification.training import probabilities_of
from alice_nnunet.classification.volumes import prepare
from alice_nnunet.errors import UserError
from alice_nnunet.features.folder import find_scans
from alice_nnunet.settings.device import chosen_device
from alice_nnunet.workers import with_progress


@dataclass(frozen=True)
class Request:
    """What alice-classify predict is asked for.

    Attributes:
        model: folder of alice-classify train, folder of a run, or the file of one.
        scans: folder or file.
        output: CSV file.
        percent: whose runs are taken of a folder with several, None for the largest.
        device: cuda, cpu or None.
        decisions: of the user, where a file leaves a choice.
    """

    model: Path
    scans: Path
    output: Path
    percent: int | None
    device: str | None
    decisions: Decisions


def find_models(folder: Path, percent: int | None) -> list[Path]:
    """The files of the classifiers. Raises UserError if there are none."""
    if folder.is_file():
        return [folder]
    if (folder / MODEL).is_file():
        return [folder / MODEL]
    if not (folder / RUNS).is_dir():
        raise UserError(f"{folder} is no folder of alice-classify train: it has no {RUNS}")

    results = read_results(folder)
    wanted = max(run.percent for run in results) if percent is None else percent
    paths = [folder / RUNS / run.name / MODEL for run in results if run.percent == wanted]
    if not paths:
        found = sorted({run.percent for run in results})
        raise UserError(f"-percent {wanted}: {folder} has runs with {found} % of the labels")
    return paths


def predict_scans(request: Request) -> None:
    """Write a line for each scan; of those that cannot be used, the reason.

    Raises:
        UserError: the models or all scans cannot be used.
    """
    device = chosen_device(request.device)
    models = [load_classifier(path) for path in find_models(request.model, request.percent)]
    first = models[0]
    if any(m.classes != first.classes or m.recipe != first.recipe for m in models):
        raise UserError(f"the runs in {request.model} have different classes or settings")

    scans, failed = find_scans(request.scans, first.channels)
    for model in models:
        model.network.to(device)

    rows = []
    jobs = ((name, files) for name, files in scans.items())
    for name, files in with_progress(jobs, "predicting", len(scans)):
        try:
            image = prepare(files, first.recipe, request.decisions)
        except ValueError as error:
            failed[name] = str(error)
            continue
        mean = ensemble(models, torch.from_numpy(image), device)
        called = first.classes[int(mean.argmax())]
        rows.append([name, called, *(f"{p:.6f}" for p in mean), ""])

    empty = [""] * (1 + len(first.classes))
    rows += [[name, *empty, reason] for name, reason in failed.items()]
    for name, reason in failed.items():
        print(f"left out: {name}: {reason}", file=sys.stderr)
    if len(rows) == len(failed):
        raise UserError(f"none of {len(failed)} scans in {request.scans} could be used, see above")

    request.output.parent.mkdir(parents=True, exist_ok=True)
    head = ["case", "predicted", *(f"probability {name}" for name in first.classes), "problem"]
    write_table(request.output, head, rows)
    done = len(rows) - len(failed)
    print(f"{done} scans, {len(failed)} left out, {len(models)} models: {request.output}")


def ensemble(
    models: list[SavedClassifier], image: torch.Tensor, device: torch.device
) -> np.ndarray:
    """(C, D, H, W) -> (classes,) mean of the probabilities of all models."""
    return np.mean([probabilities_of(m.network, image, device) for m in models], axis=0)
