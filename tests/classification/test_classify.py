"""alice-classify on a synthetic MosMedData: preprocessing, training, resuming, prediction."""

import csv
import json
import re
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from scipy.ndimage import correlate1d, map_coordinates
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from alice_nnunet.checks.findings import NO_DECISIONS
from alice_nnunet.classification import training
from alice_nnunet.classification.augmentation import augmentation
from alice_nnunet.classification.cases import mosmed_scans
from alice_nnunet.classification.metrics import calibration_error, scores_of
from alice_nnunet.classification.network import Classifier, load_classifier
from alice_nnunet.classification.recipe import ClassificationRecipe
from alice_nnunet.classification.report import read_results
from alice_nnunet.classification.splits import random_split
from alice_nnunet.classification.training import probabilities_of
from alice_nnunet.classification.volumes import cache_of, make_volumes, prepare, resized
from alice_nnunet.commands.classify import main
from alice_nnunet.features.encoder import load_encoder
from tests.helpers.finetuning import SPACING, write_case, write_checkpoint

NUMBERS = {"CT-0": 16, "CT-1": 12, "CT-2": 6, "CT-3": 4, "CT-4": 2}
SMALL = [
    "--set",
    "size=16,32,32",
    "iterations=6",
    "warmup_iterations=2",
    "validate_every=3",
    "batch_size=2",
    "lr=0.002",
]


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("weights") / "c.pth")


@pytest.fixture(scope="module")
def studies(tmp_path_factory, real_ct) -> Path:
    """40 studies under MosMedData's names: crops of one CT, those with findings with a dense block
    in one corner; and a file that is no image."""
    folder = tmp_path_factory.mktemp("mosmed") / "COVID19_1110"
    voxels = np.asarray(real_ct.dataobj)
    rng = np.random.default_rng(0)

    study = 0
    for name, number in NUMBERS.items():
        for _ in range(number):
            study += 1
            x, y, z = rng.integers(0, 4, 3)
            crop = voxels[x : x + 30, y : y + 32, z : z + 16].copy()
            crop[12:18, 12:18, 6:10] = 300 if name != "CT-0" else -900
            write_case(folder / "studies" / name / f"study_{study:04d}.nii.gz", crop)
    (folder / "studies" / "CT-1" / "study_9999.nii.gz").write_bytes(b"nothing")
    (folder / "README_EN.pdf").touch()
    return folder


def train(studies, weights, out, *options, set_more=()) -> None:
    cache = studies.parent / "cache"
    given = [str(studies), "-weights", str(weights), "-o", str(out), "-cache", str(cache)]
    main(["train", *given, "-np", "1", "-device", "cpu", *map(str, options), *SMALL, *set_more])


@pytest.fixture(scope="module")
def trained(tmp_path_factory, studies, weights) -> Path:
    out = tmp_path_factory.mktemp("trained") / "out"
    train(studies, weights, out, "-seeds", 2, "-percent", 50, 100)
    return out


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


# ---------------------------------------------------------------------------------------------
# Parts
# ---------------------------------------------------------------------------------------------


def test_preprocessing_is_what_a_hand_computes(tmp_path):
    """Turned to RAS, clipped at -1000 and 400 HU, smoothed and sampled by scipy."""
    rng = np.random.default_rng(0)
    voxels = rng.integers(-1200, 700, (32, 28, 20)).astype(np.int16)  # (x, y, z) along L, P, S
    voxels[:, :10] = -1024
    recipe = ClassificationRecipe(size=(10, 14, 8))

    ras = voxels[::-1, ::-1].transpose(2, 1, 0)  # (z, y, x)
    values = (np.clip(ras, -1000, 400) + 1000) / 1400
    factors = np.array(values.shape) / recipe.size
    for axis, factor in enumerate(factors):
        if factor > 1:  # a Gaussian, integrated over each voxel
            faces = norm.cdf(np.arange(-5.5, 6), scale=(factor - 1) / 2)
            values = correlate1d(values, np.diff(faces), axis, mode="constant")
    places = [(np.arange(n) + 0.5) * f - 0.5 for n, f in zip(recipe.size, factors)]
    expected = map_coordinates(values, np.meshgrid(*places, indexing="ij"), order=1)

    for codes in ("LPS", "RAS", "PIR"):
        path = tmp_path / f"{codes}.nii.gz"
        write_case(path, voxels, codes, (3, 3, 3))
        found = prepare([path], recipe, NO_DECISIONS)[0]
        assert found.shape == recipe.size
        inside = (slice(1, -1), slice(1, -1), slice(1, -1))
        assert np.abs(found - expected)[inside].max() < 1e-3, codes


def test_resizing_keeps_a_ramp_and_its_place():
    ramp = np.linspace(0, 1, 40, dtype=np.float32)[None, :, None, None] * np.ones((1, 1, 8, 8))
    found = resized(ramp.astype(np.float32), (10, 8, 8))[0, :, 4, 4]
    centres = (4 * np.arange(10) + 1.5) / 39
    assert np.allclose(found[2:-2], centres[2:-2], atol=1e-3)
    same = np.random.default_rng(0).random((1, 4, 5, 6), np.float32)
    assert np.allclose(resized(same, (4, 5, 6)), same, atol=1e-6)


def test_the_classifier_is_the_mean_of_tokens_and_a_line(weights):
    encoder, _ = load_encoder(weights)
    network = Classifier(encoder, 3).eval()
    image = torch.rand(2, 1, 16, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = encoder(image).mean(1) @ network.head.weight.T + network.head.bias
        assert torch.allclose(network(image), expected, atol=1e-6)


def test_augmentation_keeps_the_shape_and_changes_the_volume():
    transform = augmentation((16, 32, 32))
    image = torch.rand(1, 16, 32, 32, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    np.random.seed(0)
    results = [transform(image=image.clone())["image"] for _ in range(12)]
    assert all(r.shape == image.shape and torch.isfinite(r).all() for r in results)
    assert sum(not torch.equal(r, image) for r in results) > 6


def test_scores_are_those_of_their_definitions():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 60)
    probabilities = rng.dirichlet((1, 1, 1), 60)
    scores = scores_of(labels, probabilities)
    assert np.isclose(
        scores.auc, roc_auc_score(labels, probabilities, multi_class="ovr", average="macro")
    )
    picked = probabilities[np.arange(60), labels]
    assert np.isclose(scores.log_loss, -np.log(picked).mean())
    assert scores.sensitivity is None

    certain = np.array([[0.2, 0.8]] * 10)
    right = np.array([1] * 6 + [0] * 4)
    assert np.isclose(calibration_error(right, certain), 0.2)
    binary = scores_of(right, certain)
    assert (binary.sensitivity, binary.specificity, binary.auc) == (1, 0, 0.5)
    assert np.isclose(binary.brier, (6 * 2 * 0.04 + 4 * 2 * 0.64) / 10)


# ---------------------------------------------------------------------------------------------
# Runs
# ---------------------------------------------------------------------------------------------


def test_from_the_folder_to_the_table_and_the_plots(trained, studies):
    runs = rows_of(trained / "runs.csv")
    assert [run["run"] for run in runs] == [
        "percent50_seed0",
        "percent50_seed1",
        "percent100_seed0",
        "percent100_seed1",
    ]
    for name in ("roc.png", "confusion.png", "calibration.png"):
        assert (trained / name).stat().st_size > 5000

    predictions = rows_of(trained / "predictions.csv")
    summary = json.loads((trained / "summary.json").read_text())
    for run in runs:
        chosen = [row for row in predictions if row["run"] == run["run"]]
        truth = [row["label"] != "CT-0" for row in chosen]
        found = [float(row["probability CT-1 to CT-4"]) for row in chosen]
        assert len(chosen) == int(run["test_cases"]) == 8
        assert np.isclose(roc_auc_score(truth, found), float(run["auc"]), atol=1e-6)
    aucs = [float(run["auc"]) for run in runs if run["percent"] == "100"]
    assert np.isclose(summary["100"]["auc"]["mean"], np.mean(aucs), atol=1e-6)
    assert np.isclose(summary["100"]["auc"]["std"], np.std(aucs, ddof=1), atol=1e-6)

    config = json.loads((trained / "config.json").read_text())
    assert config["cases"] == 40 and list(config["left_out"]) == ["study_9999"]


def test_a_run_killed_in_the_middle_and_resumed_gives_the_same(
    trained, studies, weights, tmp_path, monkeypatch, capsys
):
    taken = []
    rate = training.warmup_cosine

    def interrupted(step, *rest):
        taken.append(step)
        if len(taken) == 9:  # in the second run
            raise KeyboardInterrupt
        return rate(step, *rest)

    out = tmp_path / "out"
    monkeypatch.setattr(training, "warmup_cosine", interrupted)
    options = ["-seeds", 2, "-percent", 50, 100]
    with pytest.raises(SystemExit) as stopped:
        train(studies, weights, out, *options, "--c")  # where there is nothing, it begins
    assert stopped.value.code == 130 and len(read_results(out)) == 1
    assert re.search(
        r"percent50_seed0 \| step \d+ of \d+ \| validation AUC [\d.]+ log loss [\d.]+ \| left",
        capsys.readouterr().out,
    )

    with pytest.raises(SystemExit):
        train(studies, weights, out, *options)
    assert "go on with --c" in capsys.readouterr().err
    train(studies, weights, out, *options, "--c")
    for name in ("runs.csv", "predictions.csv", "summary.json"):
        assert (out / name).read_bytes() == (trained / name).read_bytes()

    with pytest.raises(SystemExit):
        train(studies, weights, out, *options, "--c", set_more=["lr=0.001"])
    assert "cannot go on" in capsys.readouterr().err


def test_prediction_is_the_mean_over_runs(trained, studies, tmp_path, capsys):
    scans = studies / "studies" / "CT-1"
    main(["predict", str(trained), str(scans), str(tmp_path / "p.csv"), "-device", "cpu"])
    rows = {row["case"]: row for row in rows_of(tmp_path / "p.csv")}
    assert len(rows) == 13 and "cannot be read" in rows["study_9999"]["problem"]
    assert "left out: study_9999" in capsys.readouterr().err

    expected = []
    for seed in (0, 1):
        saved = load_classifier(trained / "runs" / f"percent100_seed{seed}" / "model.pth")
        image = torch.from_numpy(prepare([scans / "study_0020.nii.gz"], saved.recipe, NO_DECISIONS))
        expected.append(probabilities_of(saved.network, image, torch.device("cpu"))[1])
    found = float(rows["study_0020"]["probability CT-1 to CT-4"])
    assert np.isclose(found, np.mean(expected), atol=1e-6)


def test_the_tested_probabilities_come_from_the_best_step(trained, studies):
    result = json.loads((trained / "runs" / "percent100_seed0" / "result.json").read_text())
    best = max(result["validation"], key=lambda v: (v["auc"], -v["log_loss"]))
    assert result["best_step"] == best["step"]
    assert [v["step"] for v in result["validation"]] == [3, 6]

    saved = load_classifier(trained / "runs" / "percent100_seed0" / "model.pth")
    case = result["cases"][0]
    (path,) = studies.rglob(f"{case}.nii.gz")
    image = torch.from_numpy(prepare([path], saved.recipe, NO_DECISIONS))
    found = probabilities_of(saved.network, image, torch.device("cpu"))
    assert np.allclose(found, result["probabilities"][0], atol=2e-3)  # the cache has half precision


def test_two_folders_are_compared_in_pairs(trained, studies, weights, tmp_path, capsys):
    out = tmp_path / "scratch"
    train(studies, weights, out, "-seeds", 2, "--scratch", "-against", trained)
    printed = capsys.readouterr().out
    assert f"{out} less {trained}" in printed

    found = json.loads((out / "comparison.json").read_text())["auc_first_less_second"]["100"]
    ours = [float(run["auc"]) for run in rows_of(out / "runs.csv")]
    theirs = [float(r["auc"]) for r in rows_of(trained / "runs.csv") if r["percent"] == "100"]
    assert found["n"] == 2
    assert np.isclose(found["mean"], np.mean(np.array(ours) - theirs), atol=1e-6)


def test_a_frozen_encoder_stays_and_another_one_moves(trained, studies, weights, tmp_path):
    train(studies, weights, tmp_path / "out", "-seeds", 1, set_more=["frozen=true"])
    before = load_encoder(weights)[0].state_dict()

    def encoder_of(folder):
        saved = load_classifier(folder / "runs" / "percent100_seed0" / "model.pth")
        return saved.network.encoder.state_dict()

    frozen = encoder_of(tmp_path / "out")
    moved = encoder_of(trained)
    assert all(torch.equal(frozen[name], tensor) for name, tensor in before.items())
    assert any(not torch.equal(moved[name], tensor) for name, tensor in before.items())


def test_preparing_in_this_process_leaves_its_threads_to_the_training(studies, tmp_path):
    cases = mosmed_scans(studies / "studies", None, 1).cases[:1]
    recipe = ClassificationRecipe(size=(16, 32, 32))
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert not make_volumes(cache_of(tmp_path, recipe, NO_DECISIONS), cases, processes=1)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_batches_do_not_depend_on_the_processes_that_augment(studies, tmp_path):
    cases = mosmed_scans(studies / "studies", None, 1).cases[:3]
    recipe = ClassificationRecipe(size=(16, 32, 32), iterations=2, warmup_iterations=0)
    cache = cache_of(tmp_path, recipe, NO_DECISIONS)
    make_volumes(cache, cases, processes=1)

    alone, by_two = (
        list(training.batches(cache, cases, replace(recipe, workers=n), 0, torch.device("cpu")))
        for n in (0, 2)
    )
    for ours, theirs in zip(alone, by_two, strict=True):
        assert torch.equal(ours[0], theirs[0]) and torch.equal(ours[1], theirs[1])


def test_balanced_weights_are_the_inverse_frequencies(studies):
    scans = mosmed_scans(studies / "studies", None, 1)
    recipe = ClassificationRecipe(class_weights="balanced")
    weights = training.class_weights(scans.cases, 2, recipe)
    assert torch.allclose(weights, torch.tensor([41 / 32, 41 / 50]))
    assert len(random_split(scans, 0, 100).test) == 8


@pytest.mark.parametrize(
    "options, message",
    [
        (["--set", "size=16,32,30"], "--set size"),
        (["--set", "learning_rate=1"], "did you mean lr"),
        (["-percent", "101"], "-percent must be 1 to 100"),
        (["-folds", "30"], "needs at least 30"),
    ],
)
def test_wrong_use_ends_in_one_line(studies, weights, tmp_path, capsys, options, message):
    given = [str(studies), "-weights", str(weights), "-o", str(tmp_path / "out"), "-np", "1"]
    cache = ["-cache", str(studies.parent / "cache"), "-device", "cpu"]
    with pytest.raises(SystemExit) as stopped:
        main(["train", *given, *cache, *SMALL, *options])
    error = capsys.readouterr().err
    assert stopped.value.code == 2
    assert message in error.splitlines()[-1] and not (tmp_path / "out").exists()


def test_raw_images_with_a_table_and_folds(raw_dataset, weights, tmp_path, real_ct):
    """Three classes by how much of the body is in view, two scans of each person."""
    voxels = np.asarray(real_ct.dataobj)[:30, :32, :16]
    cases = {}
    lines = ["\ufeffcase;label;patient"]
    for person in range(9):
        for scan in range(2):
            name = f"p{person}_{scan}"
            crop = voxels.copy()
            crop[:, : 8 * (person % 3)] = -1000
            cases[name] = nibabel.Nifti1Image(crop, np.diag([-SPACING[0], -3.0, 3, 1]))
            lines.append(f"{name};class {person % 3};p{person}")
    folder = raw_dataset(cases)
    (folder / "labels.csv").write_text("\n".join([*lines, ""]), encoding="utf-8")

    options = ["-labels", str(folder / "labels.csv"), "-folds", "3", "-o", str(tmp_path / "out")]
    small = ["-np", "1", "-device", "cpu", *SMALL, "iterations=2", "warmup_iterations=0"]
    main(["train", "22", "-weights", str(weights), *options, *small])

    results = read_results(tmp_path / "out")
    assert sorted(case for run in results for case in run.cases) == sorted(cases)
    assert results[0].probabilities.shape[1] == 3
    assert (tmp_path / "preprocessed" / "Dataset022_Test" / "AliceClassify").is_dir()
