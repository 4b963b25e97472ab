"""What is there of each dataset: raw scans, preprocessed volumes, matcher and index, plans."""

import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from alice_nnunet.checkpoint import glance_at
from alice_nnunet.data.volumes import case_list_sha256, case_names
from alice_nnunet.datasets.raw_dataset import open_raw_dataset
from alice_nnunet.doctor.findings import Findings
from alice_nnunet.doctor.runs import RunState, TrainingState, runs_of, trainings_of
from alice_nnunet.files import at_work, file_sha256
from alice_nnunet.geometry import Spacing
from alice_nnunet.matcher.index import stem_of
from alice_nnunet.model.presets import presets_with_spacing
from alice_nnunet.names import (
    ANATOMY,
    CONFIGURATION,
    FINAL,
    LATEST,
    LOCK,
    PREPROCESS_LOCK,
    PREPROCESS_REPORT,
    PRETRAIN_PLANS,
    RUNS,
)

VARIABLES = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")


@dataclass(frozen=True)
class RawState:
    """Scans in nnUNet_raw: cases that can be used by their names, others, and whether labeled."""

    cases: int
    rejected: int
    labeled: bool


@dataclass(frozen=True)
class VolumesState:
    """Preprocessed volumes.

    Attributes:
        presets: of which they have the spacing; none for a spacing of the user's.
        spacing: mm, (z, y, x).
        cases: number of whole ones.
        failed: number of scans that could not be used.
        complete: whether alice-preprocess has finished.
        at_work: the process that preprocesses, or "".
        case_list_sha256: of their names.
        names: of the whole ones.
    """

    presets: list[str]
    spacing: Spacing
    cases: int
    failed: int
    complete: bool
    at_work: str
    case_list_sha256: str
    names: list[str] = field(repr=False)


@dataclass(frozen=True)
class IndexState:
    """The matcher and its index.

    Attributes:
        preset: of the matcher.
        spacing: mm, (z, y, x), of the volumes that it was trained on.
        step: of its training.
        steps: that it takes.
        finished: whether it is trained.
        cases: volumes that are indexed.
        at_work: the process that trains or indexes, or "".
        sha256: of the trained matcher, None where there is none.
    """

    preset: str
    spacing: Spacing
    step: int
    steps: int
    finished: bool
    cases: int
    at_work: str
    sha256: str | None


@dataclass(frozen=True)
class PlansState:
    """Plans of alice-plan: their name, encoder, weights, and whether these are there."""

    name: str
    encoder: str
    weights: str
    weights_exist: bool


@dataclass
class DatasetState:
    """All that is there of a dataset. What is None or empty is not there, or cannot be read."""

    name: str
    raw: RawState | None = None
    volumes: VolumesState | None = None
    index: IndexState | None = None
    plans: list[PlansState] = field(default_factory=list)
    runs: list[RunState] = field(default_factory=list)
    trainings: list[TrainingState] = field(default_factory=list)


def dataset_names() -> list[str]:
    """The datasets in nnU-Net's three folders, sorted."""
    names = set()
    for variable in VARIABLES:
        folder = folder_of(variable)
        if folder is not None and folder.is_dir():
            names |= {path.name for path in folder.iterdir() if path.is_dir()}
    return sorted(name for name in names if re.fullmatch(r"Dataset\d{3,}_.+", name))


def folder_of(variable: str) -> Path | None:
    value = os.environ.get(variable)
    return Path(value) if value else None


def look_at_dataset(name: str, findings: Findings) -> DatasetState:
    """Everything that is there of a dataset. What cannot be read is added to the findings."""
    state = DatasetState(name)
    raw, preprocessed, results = (folder_of(variable) for variable in VARIABLES)

    if raw and preprocessed and (raw / name).is_dir():
        with findings.reading(f"{raw / name}"):
            state.raw = look_at_raw(name, raw / name)

    if preprocessed:
        folder = preprocessed / name
        if (folder / f"{PRETRAIN_PLANS}.json").is_file():
            with findings.reading(f"{folder / PRETRAIN_PLANS}.json or the volumes beside it"):
                state.volumes = look_at_volumes(folder)
        if (folder / ANATOMY).is_dir():
            with findings.reading(f"{folder / ANATOMY}"):
                names = state.volumes.names if state.volumes else []
                state.index = look_at_index(folder / ANATOMY, names)
        for path in sorted(folder.glob("*.json")):
            with findings.reading(f"{path}"):
                state.plans += look_at_plans(path)

    if results:
        state.runs = runs_of(results / name / RUNS, findings)
        state.trainings = trainings_of(results / name)
    return state


def look_at_raw(name: str, folder: Path) -> RawState:
    raw = open_raw_dataset(name)
    return RawState(len(raw.cases), len(raw.rejected), (folder / "labelsTr").is_dir())


def look_at_volumes(folder: Path) -> VolumesState:
    """folder: of the dataset in nnUNet_preprocessed."""
    plans = json.loads((folder / f"{PRETRAIN_PLANS}.json").read_text(encoding="utf-8"))
    configuration = plans["configurations"][CONFIGURATION]
    z, y, x = configuration["spacing"]
    own_spacing = "preset" in plans and plans["preset"] is None

    names = case_names(folder / configuration["data_identifier"])
    report = folder / PREPROCESS_REPORT
    complete = report.is_file()
    failed = json.loads(report.read_text(encoding="utf-8"))["failed"] if complete else {}
    return VolumesState(
        presets=[] if own_spacing else presets_with_spacing((z, y, x)),
        spacing=(z, y, x),
        cases=len(names),
        failed=len(failed),
        complete=complete,
        at_work=at_work(folder / PREPROCESS_LOCK),
        case_list_sha256=case_list_sha256(names),
        names=names,
    )


def look_at_index(folder: Path, names: list[str]) -> IndexState | None:
    """The matcher in its folder, None where its training has saved nothing.

    Args:
        folder: of the matcher.
        names: of the preprocessed volumes.
    """
    path = next((folder / name for name in (FINAL, LATEST) if (folder / name).is_file()), None)
    if path is None:
        return None

    checkpoint = glance_at(path)
    z, y, x = checkpoint["data"]["spacing"]
    finished = path.name == FINAL
    indexed = [
        name
        for name in names
        if (folder / f"{stem_of(name)}.npy").is_file()
        and (folder / f"{stem_of(name)}.json").is_file()
    ]
    return IndexState(
        preset=checkpoint["config"]["preset"],
        spacing=(z, y, x),
        step=checkpoint["step"],
        steps=checkpoint["config"]["iterations"],
        finished=finished,
        cases=len(indexed) if finished else 0,
        at_work=at_work(folder / LOCK),
        sha256=file_sha256(path) if finished else None,
    )


def look_at_plans(path: Path) -> list[PlansState]:
    """The plans in a JSON file of a dataset if alice-plan wrote them, else none."""
    content = json.loads(path.read_text(encoding="utf-8"))
    block = content.get("alice") if isinstance(content, dict) else None
    if not isinstance(block, dict):
        return []
    weights = block["weights"]
    return [PlansState(path.stem, block["encoder"], weights, Path(weights).exists())]
