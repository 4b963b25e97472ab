"""alice-submit: the folder segments as nnU-Net does from the training, and checks its outputs."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from batchgenerators.utilities.file_and_folder_operations import load_pickle, save_pickle
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.postprocessing.remove_connected_components import (
    load_postprocess_save,
    remove_all_but_largest_component_from_segmentation,
)
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from alice_nnunet.commands.plan import main as alice_plan
from alice_nnunet.commands.submit import main
from alice_nnunet.environment import own_trainers
from alice_nnunet.errors import UserError
from alice_nnunet.names import CONFIGURATION, FINAL
from alice_nnunet.submission.postprocessing import find_postprocessing, read_postprocessing
from alice_nnunet.trainers.alice_trainer import AliceTrainer
from tests.helpers.finetuning import plan_by_hand, write_case, write_checkpoint, write_dataset

NAME = "Dataset007_Body"


def save_untrained(root: Path) -> Path:
    """nnU-Net's results folder with checkpoints of folds 0, 1 and all, of untrained networks."""
    preprocessed = root / "preprocessed" / NAME
    plans = json.loads((preprocessed / "AlicePlans.json").read_text())
    dataset = json.loads((preprocessed / "dataset.json").read_text())

    for seed, fold in enumerate((0, 1, "all")):
        torch.manual_seed(seed)
        trainer = AliceTrainer(
            plans | {"continue_training": False}, CONFIGURATION, fold, dataset, torch.device("cpu")
        )
        trainer.network = trainer.build_network_architecture(
            trainer.plans_manager, trainer.configuration_manager, 1, 2
        )
        trainer.optimizer, _ = trainer.configure_optimizers()
        trainer.save_checkpoint(str(Path(trainer.output_folder) / FINAL))

    model = root / "results" / NAME / f"AliceTrainer__AlicePlans__{CONFIGURATION}"
    (model / "plans.json").write_text(json.dumps(plans))
    (model / "dataset.json").write_text(json.dumps(dataset))
    return model


def write_postprocessing(model: Path, folds: str, labels: list) -> Path:
    """What nnUNetv2_find_best_configuration leaves where these steps helped."""
    folder = model / f"crossval_results_folds_{folds}"
    folder.mkdir(exist_ok=True)
    functions = [remove_all_but_largest_component_from_segmentation] * len(labels)
    arguments = [{"labels_or_regions": step} for step in labels]
    save_pickle((functions, arguments), folder / "postprocessing.pkl")
    return folder / "postprocessing.pkl"


@pytest.fixture(scope="module")
def place(tmp_path_factory, real_ct):
    """A folder with model/ (results), inputs/ (two cases, one along other axes) and submission/.

    The submission is of folds 0 and 1.
    """
    root = tmp_path_factory.mktemp("submit")

    with pytest.MonkeyPatch.context() as patch:
        for name in ("raw", "preprocessed", "results"):
            (root / name).mkdir()
            patch.setenv(f"nnUNet_{name}", str(root / name))
        patch.setenv("nnUNet_compile", "f")
        patch.setenv("nnUNet_def_n_proc", "1")
        patch.setenv("OMP_NUM_THREADS", "1")

        plan_by_hand(write_dataset(root / "raw", real_ct), root / "preprocessed" / NAME)
        weights = str(write_checkpoint(root / "c.pth"))
        alice_plan(["-d", "7", "-weights", weights, "-epochs", "1", "-np", "1"])
        save_untrained(root).rename(root / "model")

        voxels = np.asarray(real_ct.dataobj)[5:33, 3:30, :16]
        write_case(root / "inputs" / "a_0000.nii.gz", voxels, "LPS")
        write_case(root / "inputs" / "b_0000.nii.gz", voxels, "SAL")

        write_postprocessing(root / "model", "0_1", [[1]])
        main([str(root / "model"), str(root / "submission")])
        assert not list(root.rglob("*.partial"))
        assert not list((root / "submission").rglob("__pycache__"))
        yield root


def refused(capsys, *arguments) -> str:
    """The one line that a refused call ends in."""
    with pytest.raises(SystemExit) as stopped:
        main([str(argument) for argument in arguments])

    text = capsys.readouterr().err
    assert stopped.value.code == 2
    assert text.startswith("alice-submit: ") and text.count("\n") == 1
    return text


def call(folder: Path, *words) -> subprocess.CompletedProcess:
    """Run a script of the submission without nnU-Net's variables and this checkout."""
    clean = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("nnUNet", "alice", "PYTHON"))
    }
    return subprocess.run(
        [str(word) for word in words],
        env={**clean, "PYTHON": sys.executable},
        cwd=folder,
        capture_output=True,
        text=True,
    )


def check(place: Path, outputs: Path) -> subprocess.CompletedProcess:
    script = place / "submission" / "check_outputs.py"
    return call(place, sys.executable, script, place / "inputs", outputs)


@pytest.fixture(scope="module")
def predicted(place) -> tuple[Path, str]:
    """The outputs of predict.sh for a, b, and others that are no images, and what it printed.

    Meanwhile the training that the submission came from is gone.
    """
    broken = place / "inputs" / "aa_0000.nii.gz"
    broken.write_bytes(b"no NIfTI")
    shifted = place / "inputs" / "shifted_0000.nii.gz"
    a = nibabel.load(place / "inputs" / "a_0000.nii.gz")
    nibabel.save(nibabel.Nifti1Image(np.asarray(a.dataobj) + 1024, a.affine), shifted)
    others = [place / "inputs" / name for name in ("c_0000.nrrd", "notes.txt", "d_0001.nii.gz")]
    for other in others:
        other.write_bytes(b"")
    (place / "model").rename(place / "gone")

    done = call(place, "sh", "submission/predict.sh", "inputs", "outputs")

    (place / "gone").rename(place / "model")
    for path in (broken, shifted, *others):
        path.unlink()
    assert done.returncode == 1, done.stderr
    return place / "outputs", done.stdout


def test_it_segments_as_nnunet_does_from_the_training(place, predicted, monkeypatch):
    outputs, _ = predicted
    assert {p.name for p in outputs.iterdir()} == {"a.nii.gz", "b.nii.gz", "resources.json"}

    monkeypatch.setenv("nnUNet_extTrainer", own_trainers())
    predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(place / "model"), (0, 1))
    (place / "reference").mkdir()
    predictor.predict_from_files_sequential(
        [[str(place / "inputs" / "b_0000.nii.gz")]], [str(place / "reference" / "b")]
    )

    ours = nibabel.load(outputs / "b.nii.gz")
    theirs = as_nnunet_postprocesses(
        place / "model", place / "reference" / "b.nii.gz", place / "postprocessed.nii.gz"
    )
    assert np.array_equal(np.asarray(ours.dataobj), np.asarray(theirs.dataobj))
    assert np.array_equal(ours.affine, theirs.affine)
    assert len(np.unique(np.asarray(ours.dataobj))) == 2


def as_nnunet_postprocesses(model: Path, segmentation: Path, result: Path) -> nibabel.Nifti1Image:
    """What nnUNetv2_apply_postprocessing makes of a segmentation (folds 0 and 1 of a model)."""
    pickled = model / "crossval_results_folds_0_1" / "postprocessing.pkl"
    reader = PlansManager(str(model / "plans.json")).image_reader_writer_class()
    load_postprocess_save(str(segmentation), str(result), reader, *load_pickle(pickled))
    return nibabel.load(result)


class WritesLabels:
    """A predictor that "predicts" given labels."""

    device = torch.device("cpu")

    def __init__(self, image: nibabel.Nifti1Image):
        self.image = image

    def predict_from_files_sequential(self, files: list, outputs: list[str]) -> None:
        nibabel.save(self.image, f"{outputs[0]}.nii.gz")


def test_the_submission_postprocesses_as_nnunet_does(place, tmp_path):
    settings = json.loads((place / "submission" / "settings.json").read_text())
    assert settings["postprocessing"] == [[1]]

    labels = np.random.default_rng(0).integers(0, 2, (12, 13, 14)).astype(np.uint8)
    labels[:2] = 0
    labels[0, 0, 0] = 1  # far from the others
    image = nibabel.Nifti1Image(labels, np.diag([-1.0, 2.0, 3.0, 1.0]))
    nibabel.save(image, tmp_path / "before.nii.gz")
    theirs = as_nnunet_postprocesses(
        place / "model", tmp_path / "before.nii.gz", tmp_path / "after.nii.gz"
    )

    script = load_script(place / "submission" / "predict.py")
    row = script["predict"](WritesLabels(image), "a", ["a_0000.nii.gz"], tmp_path, settings)
    assert "error" not in row
    ours = nibabel.load(tmp_path / "a.nii.gz")
    assert np.array_equal(np.asarray(ours.dataobj), np.asarray(theirs.dataobj))
    assert np.array_equal(ours.affine, image.affine)
    assert ours.dataobj[0, 0, 0] == 0 and np.asarray(ours.dataobj).any()


def test_a_scan_is_segmented_alike_along_any_axes(predicted):
    """a and b are one scan, stored as LPS and as SAL."""
    a, b = (nibabel.load(predicted[0] / f"{case}.nii.gz") for case in "ab")
    turned = [np.asarray(nibabel.as_closest_canonical(image).dataobj) for image in (a, b)]
    assert np.array_equal(*turned) and nibabel.aff2axcodes(b.affine) == ("S", "A", "L")
    for image in (a, b):
        assert image.header["sform_code"] and image.header["qform_code"]
        np.testing.assert_allclose(image.get_qform(), image.get_sform(), atol=1e-4)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_the_folder_is_whole_and_holds_no_more_than_prediction_needs(place):
    folder = place / "submission"
    assert names(folder) == {
        "model",
        "code",
        "predict.sh",
        "predict.py",
        "check_outputs.py",
        "Dockerfile",
        "README.md",
        "requirements.txt",
        "settings.json",
    }
    assert names(folder / "model") == {"fold_0", "fold_1", "plans.json", "dataset.json"}

    code = names(folder / "code" / "alice_nnunet")
    assert {"trainers", "networks", "LICENSE"} <= code
    assert not code & {"demo", "commands", "submission", "pretrain"}

    for name in ("README.md", "Dockerfile"):
        assert "@" not in (folder / name).read_text()  # of the placeholders
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    assert f"FROM python:{version}-slim" in (folder / "Dockerfile").read_text()


def test_the_weights_are_those_of_the_training_without_the_optimizer(place):
    written = place / "submission" / "model" / "fold_1" / FINAL
    kept = torch.load(written, weights_only=True)  # no pickled classes
    whole = torch.load(place / "model" / "fold_1" / FINAL, weights_only=False)

    assert kept.keys() == {
        "network_weights",
        "trainer_name",
        "init_args",
        "inference_allowed_mirroring_axes",
    }
    for name, tensor in whole["network_weights"].items():
        assert torch.equal(kept["network_weights"][name], tensor)


def test_the_requirements_are_the_installed_versions(place):
    lines = (place / "submission" / "requirements.txt").read_text().splitlines()

    packages = {line.split("==")[0] for line in lines}
    assert packages >= {"nnunetv2", "torch", "monai", "nibabel"}
    assert f"torch=={torch.__version__.split('+')[0]}" in lines
    for line in lines:
        assert "+" not in line and not line.startswith(("alice", "nvidia"))


def test_time_and_memory_of_each_case_are_reported(place, predicted):
    report = json.loads((predicted[0] / "resources.json").read_text())

    assert report["device"] in ("cpu", "cuda")
    rows = [row for row in report["cases"] if "error" not in row]
    assert [row["case"] for row in rows] == ["a", "b"]
    for row in rows:
        assert row["seconds"] >= 0
        assert row["peak_rss_mib"] > 100
        assert ("peak_gpu_mib" in row) == (report["device"] == "cuda")


def test_good_outputs_pass_the_check(place, predicted):
    done = check(place, predicted[0])
    assert done.returncode == 0 and "2 cases: all there" in done.stdout, done.stdout + done.stderr


def moved(image: nibabel.Nifti1Image) -> nibabel.Nifti1Image:
    affine = image.affine.copy()
    affine[0, 3] += 1
    return nibabel.Nifti1Image(np.asarray(image.dataobj), affine)


def contradicting(image: nibabel.Nifti1Image) -> nibabel.Nifti1Image:
    """With forms that ITK and nibabel read differently, whichever of the two ITK takes."""
    spoiled = nibabel.Nifti1Image(np.asarray(image.dataobj), image.affine)
    spoiled.set_sform(image.affine, 4)
    spoiled.set_qform(np.diag([-1.0, -1.0, 1.0, 1.0]) @ image.affine, 1)
    return spoiled


@pytest.mark.parametrize(
    "change, said",
    [
        (
            lambda image: nibabel.Nifti1Image(np.asarray(image.dataobj) + 5, image.affine),
            "has the labels [5, 6], the model knows [0, 1]",
        ),
        (
            lambda image: nibabel.Nifti1Image(np.asarray(image.dataobj)[1:], image.affine),
            "voxels, the image (",
        ),
        (moved, "lies elsewhere"),
        (contradicting, "lies elsewhere for ITK"),
        (lambda image: None, "b.nii.gz is missing"),
    ],
)
def test_the_check_finds_what_is_wrong(place, predicted, tmp_path, change: Callable, said: str):
    outputs = shutil.copytree(predicted[0], tmp_path / "outputs")
    spoiled = change(nibabel.load(predicted[0] / "b.nii.gz"))
    (outputs / "b.nii.gz").unlink()
    if spoiled is not None:
        nibabel.save(spoiled, outputs / "b.nii.gz")
    (outputs / "more.nii.gz").write_bytes(b"")

    done = check(place, outputs)

    assert done.returncode == 1
    assert said in done.stdout and "more.nii.gz in" in done.stdout
    assert len(done.stdout.splitlines()) == 2


def test_bad_inputs_are_listed_first_and_cost_only_themselves(predicted):
    outputs, said = predicted
    listed, segmented = said.split("Model loaded in ")
    assert "passed over: notes.txt" in listed and "4 of 6 inputs cannot be segmented" in listed
    for reason in (
        "aa_0000.nii.gz: cannot be read",
        "shifted_0000.nii.gz: CT that does not look like HU: values from",
        "c_0000.nrrd: is not called CASE_0000.nii.gz. Rename or convert it",
        "missing or too many: d_0000.nii.gz, d_0001.nii.gz",
    ):
        assert reason in listed
    assert "2 of 6 cases" in segmented and "failed: c_0000.nrrd, d, aa, shifted" in segmented
    assert not (outputs / "aa.nii.gz").exists()

    rows = json.loads((outputs / "resources.json").read_text())["cases"]
    assert ["error" in row for row in rows] == [True] * 4 + [False] * 2


def load_script(path: Path) -> dict:
    """The functions of a script, without running its main: starting Python would take seconds."""
    script = {"__name__": "script", "__file__": str(path)}
    exec(path.read_text(), script)
    return script


@pytest.mark.parametrize(
    "entries",
    [
        {"labels": {"background": 0, "a": 1, "b": 2, "ignore": 3}},
        {
            "labels": {"background": 0, "whole": [1, 2], "core": [2], "ignore": 3},
            "regions_class_order": [5, 7],
        },
    ],
)
def test_labels_that_a_segmentation_may_have_are_nnunets(place, entries):
    script = load_script(place / "submission" / "check_outputs.py")
    manager = LabelManager(entries["labels"], entries.get("regions_class_order"))

    # Every combination of heads that are on or off, as voxels of an image.
    on_or_off = [torch.tensor([-9.0, 9.0]) for _ in range(manager.num_segmentation_heads)]
    logits = torch.cartesian_prod(*on_or_off).T[:, None, None]
    possible = manager.convert_logits_to_segmentation(logits).unique().int().tolist()

    assert script["known_labels"](entries) == set(possible)


@pytest.mark.parametrize(
    "files, said",
    [
        ([], "no .nii.gz files"),
        (["a.nii.gz"], "must hold CASE_0000.nii.gz; it has a.nii.gz"),
        (["a.nrrd", "._a_0000.nii.gz"], "must hold CASE_0000.nii.gz; it has a.nrrd"),
    ],
)
def test_inputs_that_are_not_as_prescribed(place, tmp_path, files, said):
    for name in files:
        (tmp_path / name).write_bytes(b"")
    script = load_script(place / "submission" / "predict.py")

    with pytest.raises(SystemExit, match=said):
        script["find_cases"](tmp_path, 1)


@pytest.mark.parametrize(
    "files, said",
    [
        (["a_0000.nii.gz", "a_0001.nii.gz"], "takes 1 channels"),
        (["a_0001.nii.gz"], "a_0000.nii.gz, a_0001"),
    ],
)
def test_cases_of_other_channels_are_refused_alone(place, tmp_path, files, said):
    for name in [*files, "b_0000.nii.gz"]:
        (tmp_path / name).write_bytes(b"")
    script = load_script(place / "submission" / "predict.py")

    cases, refused = script["find_cases"](tmp_path, 1)
    assert cases == {"b": [str(tmp_path / "b_0000.nii.gz")]}
    assert said in refused.pop("a") and refused == {}


def test_a_trainer_of_ones_own_comes_along(place, tmp_path, monkeypatch, capsys):
    model = shutil.copytree(place / "model", tmp_path / "model")
    checkpoint = model / "fold_0" / FINAL
    content = torch.load(checkpoint, weights_only=False)
    torch.save(content | {"trainer_name": "TheirOwnTrainer"}, checkpoint)

    text = refused(capsys, model, tmp_path / "out", "-f", "0")
    assert "does not load from the folder alone" in text
    assert "TheirOwnTrainer" in text and "nnUNet_extTrainer" in text

    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "their_own.py").write_text(
        "from alice_nnunet.trainers.alice_trainer import AliceTrainer\n\n\n"
        "class TheirOwnTrainer(AliceTrainer):\n    pass\n"
    )
    folders = os.pathsep.join([str(tmp_path / "own"), own_trainers()])
    monkeypatch.setenv("nnUNet_extTrainer", folders)

    main([str(model), str(tmp_path / "out"), "-f", "0", "--disable_tta"])

    assert (tmp_path / "out" / "code" / "alice_nnunet" / "trainers" / "their_own.py").is_file()
    assert json.loads((tmp_path / "out" / "settings.json").read_text())["mirroring"] is False


def test_models_that_cannot_be_submitted(place, tmp_path, capsys):
    good = place / "model"
    out = tmp_path / "out"
    assert "no plans.json" in refused(capsys, place, out)
    assert "there is one for 0, 1, all" in refused(capsys, good, out, "-f", "0", "3")
    assert "no checkpoint_best.pth" in refused(capsys, good, out, "-chk", "checkpoint_best.pth")
    assert "exists already" in refused(capsys, good, place / "submission")

    model = shutil.copytree(good, tmp_path / "model")
    checkpoint = model / "fold_0" / FINAL
    torch.save({"network_weights": {}}, checkpoint)
    assert "lacks trainer_name" in refused(capsys, model, out)
    checkpoint.write_bytes(b"nothing")
    assert "not a readable checkpoint" in refused(capsys, model, out)

    dataset = json.loads((model / "dataset.json").read_text())
    (model / "dataset.json").write_text(json.dumps(dataset | {"file_ending": ".nrrd"}))
    assert "'.nrrd'" in refused(capsys, model, out)
    assert names(tmp_path) == {"model"}


def test_regions_and_several_steps_as_nnunet_does_them(place, tmp_path):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, (12, 13, 14)).astype(np.uint8)
    image = nibabel.Nifti1Image(labels, np.diag([1.0, 2.0, 3.0, 1.0]))
    nibabel.save(image, tmp_path / "a.nii.gz")
    steps = [[1, (2, 3)], [3], (1, 2)]
    path = write_postprocessing(tmp_path, "0", steps)

    expected = labels
    for step in steps:
        expected = remove_all_but_largest_component_from_segmentation(expected, step)

    plain = json.loads(json.dumps(read_postprocessing(path)))  # as settings.json holds them
    load_script(place / "submission" / "predict.py")["postprocess"](tmp_path / "a.nii.gz", plain)
    result = nibabel.load(tmp_path / "a.nii.gz")
    assert np.array_equal(np.asarray(result.dataobj), expected)
    assert not np.array_equal(expected, labels) and result.header["pixdim"][3] == 3


def test_which_postprocessing_is_taken(tmp_path, capsys):
    assert find_postprocessing(tmp_path, [0, 1]) == []
    assert "none was determined" in capsys.readouterr().out

    write_postprocessing(tmp_path, "0_1_2", [[1]])
    assert find_postprocessing(tmp_path, [0, 1]) == []
    assert "there is one of crossval_results_folds_0_1_2" in capsys.readouterr().out

    assert find_postprocessing(tmp_path, [0, 1, 2]) == [[1]]
    assert "largest component of label 1 (" in capsys.readouterr().out
    write_postprocessing(tmp_path, "0_1", [])
    assert find_postprocessing(tmp_path, [0, 1]) == []
    assert "none helped" in capsys.readouterr().out


@pytest.mark.parametrize("content", [([os.remove], [{"labels_or_regions": [1]}]), "text", ([], 3)])
def test_another_postprocessing_is_refused(tmp_path, content):
    path = write_postprocessing(tmp_path, "0", [])
    save_pickle(content, path)
    with pytest.raises(UserError, match="something else than nnU-Net's postprocessing"):
        find_postprocessing(tmp_path, [0])
