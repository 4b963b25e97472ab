"""All runs of alice-classify train: prepared, trained one after the other, reported."""

import hashlib
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from alice_nnunet.checks.findings import Decisions
from alice_nnunet.classification.cases import LabeledScans, open_labeled_scans
from alice_nnunet.classification.figures import (
    calibration_figure,
    confusion_figure,
    roc_figure,
)
from alice_nnunet.classification.network import check_size, save_classifier
from alice_nnunet.classification.recipe import ClassificationRecipe, as_plain
from alice_nnunet.classification.report import (
    CONFIG,
    MODEL,
    RESULT,
    RUNS,
    RunResult,
    compare,
    comparison_text,
    plain_summary,
    read_results,
    summary_text,
    write_predictions,
    write_runs,
)
from alice_nnunet.classification.splits import Split, fold_split, random_split
from alice_nnunet.classification.training import Validation, train_classifier
from alice_nnunet.classification.volumes import VolumeCache, cache_of, make_volumes
from alice_nnunet.environment import nnunet_folder
from alice_nnunet.errors import UserError
from alice_nnunet.features.encoder import build_pretrained
from alice_nnunet.files import locked, locked_in_turn, write_json_atomically
from alice_nnunet.finetuning.pretrained import PretrainedEncoder, load_pretrained
from alice_nnunet.finetuning.seeded_loading import seed_generators
from alice_nnunet.model.encoders.base import Encoder
from alice_nnunet.model.encoders.registry import build_encoder
from alice_nnunet.pictures import save_figure
from alice_nnunet.settings.device import chosen_device
from alice_nnunet.settings.reading import differences
from alice_nnunet.text import duration

MAY_DIFFER = ("workers",)  # settings that change no result
SCRATCH = 4  # stream of random numbers: the weights of an encoder from scratch


@dataclass(frozen=True)
class Request:
    """What alice-classify train is asked for.

    Attributes:
        dataset: ID or name in nnUNet_raw, or folder in MosMedData's layout.
        labels: CSV file.
        weights: of the encoder.
        scratch: take the encoder's architecture and random weights.
        output: folder.
        cache: folder of the prepared volumes, None for one in nnUNet_preprocessed.
        seeds: number of random splits.
        folds: number of folds of a cross-validation in place of random splits, 0 for none.
        percents: of the labels for training.
        recipe: of all runs.
        resume: go on with what is in the folder.
        against: another folder to compare with.
        device: cuda, cpu or None.
        processes: that preprocess.
        decisions: of the user, where a file leaves a choice.
    """

    dataset: str
    labels: Path | None
    weights: str
    scratch: bool
    output: Path
    cache: Path | None
    seeds: int
    folds: int
    percents: tuple[int, ...]
    recipe: ClassificationRecipe
    resume: bool
    against: Path | None
    device: str | None
    processes: int
    decisions: Decisions


@dataclass(frozen=True)
class PlannedRun:
    """A run: its name, percent of the labels, seed or fold, and its split."""

    name: str
    percent: int
    number: int
    split: Split


def run_experiment(request: Request) -> None:
    """Train and test all runs that are not finished, then write the report.

    Raises:
        UserError: something cannot be used, or the folder holds another experiment.
    """
    device = chosen_device(request.device)
    pretrained = load_pretrained(request.weights)
    channels = pretrained.arguments.get("in_channels", 1)
    check_size(fresh_encoder(pretrained, scratch=True, seed=0), request.recipe)
    say_window(pretrained, request.recipe)

    scans = open_labeled_scans(request.dataset, request.labels, channels)
    planned_runs(request, scans)  # complain before hours of preprocessing
    cache = cache_of(cache_folder(request, scans), request.recipe, request.decisions)
    scans, left_out = with_volumes(scans, cache, request.processes)
    runs = planned_runs(request, scans)

    check_resuming(request)
    request.output.mkdir(parents=True, exist_ok=True)
    with locked(request.output / "lock"):
        settle_config(request, config_of(request, pretrained, scans, left_out))
        for count, run in enumerate(runs, 1):
            folder = request.output / RUNS / run.name
            if (folder / RESULT).is_file():
                print(f"{run.name}: done before ({count} of {len(runs)})", flush=True)
                continue
            result = train_run(request, pretrained, scans, cache, run, device)
            said = f"test AUC {result.scores.auc:.4f}, best step {result.best_step}"
            print(f"{run.name}: {said} ({count} of {len(runs)})", flush=True)
        write_report(request.output, scans.classes)

    if request.against is not None:
        compare_folders(request.output, request.against)


def say_window(pretrained: PretrainedEncoder, recipe: ClassificationRecipe) -> None:
    """Say that intensities differ from the pretraining's, on purpose."""
    windows = [channel.get("window") for channel in pretrained.data["channels"]]
    low, high = recipe.window
    print(
        f"intensities: {low:g} to {high:g} HU become 0 to 1 (Alice, B.2); the encoder was "
        f"pretrained with {windows}. The difference is intended",
        flush=True,
    )


def fresh_encoder(pretrained: PretrainedEncoder, scratch: bool, seed: int) -> Encoder:
    """The encoder as a run starts: pretrained, or of the same architecture with random weights."""
    if not scratch:
        return build_pretrained(pretrained)
    seed_generators(seed, SCRATCH)
    return build_encoder(pretrained.name, pretrained.arguments)


def cache_folder(request: Request, scans: LabeledScans) -> Path:
    """Where the prepared volumes of a data set are."""
    if request.cache is not None:
        return request.cache
    return nnunet_folder("nnUNet_preprocessed") / scans.name / "AliceClassify"


def with_volumes(
    scans: LabeledScans, cache: VolumeCache, processes: int
) -> tuple[LabeledScans, dict[str, str]]:
    """Make all volumes. Returns the scans that have one, and the others with reasons."""
    cache.folder.mkdir(parents=True, exist_ok=True)
    with locked_in_turn(cache.folder / "lock"):
        failed = make_volumes(cache, scans.cases, processes)

    for note in scans.notes:
        print(f"passed over: {note}", file=sys.stderr)
    for name, reason in failed.items():
        print(f"left out: {name}: {reason}", file=sys.stderr)

    cases = tuple(case for case in scans.cases if case.name not in failed)
    print(f"{len(cases)} scans, {len(failed)} left out; volumes in {cache.folder}", flush=True)
    return LabeledScans(scans.name, scans.classes, cases, scans.notes), failed


def planned_runs(request: Request, scans: LabeledScans) -> list[PlannedRun]:
    """All runs, by percent. Raises UserError if a class has too few patients."""
    kind = "fold" if request.folds else "seed"
    runs = []
    for percent in request.percents:
        for number in range(request.folds or request.seeds):
            if request.folds:
                split = fold_split(scans, request.folds, number, percent)
            else:
                split = random_split(scans, number, percent)
            runs.append(PlannedRun(f"percent{percent}_{kind}{number}", percent, number, split))
    return runs


def check_resuming(request: Request) -> None:
    """Raise UserError if there is something in the folder, and nobody asked to go on with it."""
    if (request.output / CONFIG).is_file() and not request.resume:
        raise UserError(f"{request.output} holds runs already: go on with --c, or give another -o")


def config_of(
    request: Request,
    pretrained: PretrainedEncoder,
    scans: LabeledScans,
    left_out: dict[str, str],
) -> dict:
    """What all results depend on, and what is told about them."""
    listed = "\n".join(f"{c.name},{c.label},{c.patient}" for c in scans.cases)
    return {
        "dataset": scans.name,
        "classes": list(scans.classes),
        "cases": len(scans.cases),
        "cases_sha256": hashlib.sha256(listed.encode()).hexdigest(),
        "weights": None if request.scratch else pretrained.path,
        "weights_sha256": None if request.scratch else pretrained.sha256,
        "encoder": pretrained.name,
        "encoder_arguments": pretrained.arguments,
        "folds": request.folds,
        "recipe": as_plain(request.recipe),
        "left_out": left_out,
        "decisions": request.decisions.to_dict(),
    }


def settle_config(request: Request, config: dict) -> None:
    """Write the config, or compare it with the one that is there. Raises UserError if it differs.

    The number of seeds, the percents and what changes no result may differ.
    """
    path = request.output / CONFIG
    if not path.is_file():
        write_json_atomically(path, config)
        return

    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}): give another -o") from None

    compared = {k: v for k, v in config.items() if k not in ("recipe", "weights", "left_out")}
    recipe = {k: v for k, v in config["recipe"].items() if k not in MAY_DIFFER}
    wrong = differences(saved, compared, "now", "in the saved runs")
    wrong += differences(saved["recipe"], recipe, "now", "in the saved runs")
    if wrong:
        raise UserError(f"cannot go on in {request.output}: {'; '.join(wrong)}. Give another -o")


def train_run(
    request: Request,
    pretrained: PretrainedEncoder,
    scans: LabeledScans,
    cache: VolumeCache,
    run: PlannedRun,
    device: torch.device,
) -> RunResult:
    """Train and test one run. Its result is written last: with it, the run is finished."""
    by_name = {case.name: case for case in scans.cases}
    train, validation, test = (
        tuple(by_name[name] for name in part)
        for part in (run.split.train, run.split.validation, run.split.test)
    )
    encoder = fresh_encoder(pretrained, request.scratch, run.number)
    parts = (train, validation, test)
    trained = train_classifier(
        encoder,
        cache,
        parts,
        len(scans.classes),
        request.recipe,
        run.number,
        device,
        progress_of(run.name, request.recipe.iterations),
    )

    result = RunResult(
        name=run.name,
        percent=run.percent,
        number=run.number,
        best_step=trained.best.step,
        validation_auc=trained.best.auc,
        cases=run.split.test,
        labels=torch.tensor([case.label for case in test]).numpy(),
        probabilities=trained.probabilities,
    )
    folder = request.output / RUNS / run.name
    folder.mkdir(parents=True, exist_ok=True)
    save_classifier(
        folder / MODEL,
        trained.weights,
        pretrained.name,
        pretrained.arguments,
        scans.classes,
        request.recipe,
    )
    history = [vars(found) for found in trained.history]
    split = vars(run.split)
    write_json_atomically(
        folder / RESULT, {**result.to_dict(), "split": split, "validation": history}
    )
    return result


def progress_of(name: str, iterations: int) -> Callable[[Validation], None]:
    """What prints, after each validation, how far a run is and the time left."""
    started = time.monotonic()

    def tell(found: Validation) -> None:
        left = (time.monotonic() - started) / found.step * (iterations - found.step)
        print(
            f"{name} | step {found.step} of {iterations} | validation AUC {found.auc:.4f} log loss "
            f"{found.log_loss:.4f} | left {duration(left)}",
            flush=True,
        )

    return tell


def write_report(folder: Path, classes: tuple[str, ...]) -> None:
    """Write tables and plots of all finished runs, and print the table."""
    results = read_results(folder)
    write_runs(folder / "runs.csv", results)
    write_predictions(folder / "predictions.csv", results, classes)
    write_json_atomically(folder / "summary.json", plain_summary(results))
    save_figure(roc_figure(results, classes), folder / "roc.png")
    save_figure(confusion_figure(results, classes), folder / "confusion.png")
    save_figure(calibration_figure(results, classes), folder / "calibration.png")
    print(
        f"\n{summary_text(results)}\n\nwritten: runs.csv, predictions.csv, summary.json and plots"
    )
    print(f"in {folder}", flush=True)


def compare_folders(first: Path, second: Path) -> None:
    """Print and write the comparison of two sets of runs, in pairs."""
    table = compare(read_results(first), read_results(second))
    print("\n" + comparison_text(f"{first} less {second}", table), flush=True)
    content = {str(percent): vars(row) for percent, row in table.items()}
    write_json_atomically(
        first / "comparison.json", {"against": str(second), "auc_first_less_second": content}
    )
