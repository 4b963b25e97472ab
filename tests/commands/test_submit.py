"""alice-submit: the folder segments by itself, as nnU-Net's predictor does from the whole training, and checks what it wrote."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from alice_nnunet.commands.env import with_trainers
from alice_nnunet.commands.plan import main as alice_plan
from alice_nnunet.commands.submit import main
from alice_nnunet.trainers.alice_trainer import AliceTrainer
from tests.helpers.finetuning import plan_by_hand, write_case, write_checkpoint, write_dataset

NAME = "Dataset007_Body"


def save_untrained(root: Path) -> Path:
    """nnU-Net's results folder with the checkpoints of folds 0 and 1 and of all, of networks that were never trained."""
    plans, dataset = (
        json.loads((root / "preprocessed" / NAME / name).read_text())
        for name in ("AlicePlans.json", "dataset.json")
    )
    for seed, fold in enumerate((0, 1, "all")):
        torch.manual_seed(seed)
        trainer = AliceTrainer(
            plans | {"continue_training": False}, "3d_fullres", fold, dataset, torch.device("cpu")
        )
        trainer.network = trainer.build_network_architecture(
            trainer.plans_manager, trainer.configuration_manager, 1, 2
        )
        trainer.optimizer, _ = trainer.configure_optimizers()
        trainer.save_checkpoint(str(Path(trainer.output_folder) / "checkpoint_final.pth"))
    model = root / "results" / NAME / "AliceTrainer__AlicePlans__3d_fullres"
    (model / "plans.json").write_text(json.dumps(plans))
    (model / "dataset.json").write_text(json.dumps(dataset))
    return model


@pytest.fixture(scope="module")
def place(tmp_path_factory, real_ct):
    """A folder with model/ (a results folder), inputs/ (two cases, one along other axes) and submission/ (of folds 0 and 1)."""
    root = tmp_path_factory.mktemp("submit")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("raw", "preprocessed", "results"):
            (root / name).mkdir()
            patch.setenv(f"nnUNet_{name}", str(root / name))
        for name, value in {
            "nnUNet_compile": "f",
            "nnUNet_def_n_proc": "1",
            "OMP_NUM_THREADS": "1",
        }.items():
            patch.setenv(name, value)
        plan_by_hand(write_dataset(root / "raw", real_ct), root / "preprocessed" / NAME)
        alice_plan(
            [
                "-d",
                "7",
                "-weights",
                str(write_checkpoint(root / "c.pth")),
                "-epochs",
                "1",
                "-np",
                "1",
            ]
        )
        save_untrained(root).rename(root / "model")
        for case, codes in (("a", "LPS"), ("b", "SAL")):
            write_case(
                root / "inputs" / f"{case}_0000.nii.gz",
                np.asarray(real_ct.dataobj)[5:33, 3:30, :16],
                codes,
            )
        main([str(root / "model"), str(root / "submission")])
        assert not list(root.rglob("*.partial")) and not list(
            (root / "submission").rglob("__pycache__")
        )
        yield root


def refused(capsys, *arguments) -> str:
    """The one line that a refused call ends in."""
    with pytest.raises(SystemExit) as stopped:
        main([str(a) for a in arguments])
    text = capsys.readouterr().err
    assert stopped.value.code == 2 and text.startswith("alice-submit: ") and text.count("\n") == 1
    return text


def call(folder: Path, *words) -> subprocess.CompletedProcess:
    """A script of the submission, with nothing of nnU-Net or of this checkout in the environment."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("nnUNet", "alice", "PYTHON"))}
    return subprocess.run(
        [str(w) for w in words],
        env={**clean, "PYTHON": sys.executable},
        cwd=folder,
        capture_output=True,
        text=True,
    )


def check(place: Path, outputs: Path) -> subprocess.CompletedProcess:
    return call(
        place, sys.executable, place / "submission" / "check_outputs.py", place / "inputs", outputs
    )


@pytest.fixture(scope="module")
def predicted(place) -> tuple[Path, str]:
    """The outputs of predict.sh for a, aa, which is no image, and b, and what it said; the training it came from is gone meanwhile."""
    broken = place / "inputs" / "aa_0000.nii.gz"
    broken.write_bytes(b"no NIfTI")
    (place / "model").rename(place / "gone")
    done = call(place, "sh", "submission/predict.sh", "inputs", "outputs")
    (place / "gone").rename(place / "model")
    broken.unlink()
    assert done.returncode == 1, done.stderr
    return place / "outputs", done.stdout


def test_it_segments_as_nnunet_does_from_the_training(place, predicted, monkeypatch):
    outputs, _ = predicted
    assert {p.name for p in outputs.iterdir()} == {"a.nii.gz", "b.nii.gz", "resources.json"}
    monkeypatch.setenv("nnUNet_extTrainer", with_trainers(""))
    predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(place / "model"), (0, 1))
    (place / "reference").mkdir()
    predictor.predict_from_files_sequential(
        [[str(place / "inputs" / "b_0000.nii.gz")]], [str(place / "reference" / "b")]
    )
    ours, theirs = (nibabel.load(folder / "b.nii.gz") for folder in (outputs, place / "reference"))
    assert np.array_equal(np.asarray(ours.dataobj), np.asarray(theirs.dataobj)) and np.array_equal(
        ours.affine, theirs.affine
    )
    assert len(np.unique(np.asarray(ours.dataobj))) == 2


def test_the_folder_is_whole_and_holds_no_more_than_prediction_needs(place):
    folder, names = place / "submission", lambda path: {p.name for p in path.iterdir()}
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
    kept, whole = (
        torch.load(place / where / "fold_1" / "checkpoint_final.pth", weights_only=False)
        for where in ("submission/model", "model")
    )
    assert kept.keys() == {
        "network_weights",
        "trainer_name",
        "init_args",
        "inference_allowed_mirroring_axes",
    }
    assert all(
        torch.equal(kept["network_weights"][n], whole["network_weights"][n])
        for n in whole["network_weights"]
    )
    torch.load(
        folder / "model" / "fold_1" / "checkpoint_final.pth", weights_only=True
    )  # no pickled classes
    code = names(folder / "code" / "alice_nnunet")
    assert {"trainers", "networks", "LICENSE"} <= code and not code & {
        "demo",
        "commands",
        "submission",
        "pretrain",
    }
    lines = (folder / "requirements.txt").read_text().splitlines()
    assert {line.split("==")[0] for line in lines} >= {"nnunetv2", "torch", "monai", "nibabel"}
    assert f"torch=={torch.__version__.split('+')[0]}" in lines and not any(
        "+" in line or line.startswith(("alice", "nvidia")) for line in lines
    )
    assert (
        f"FROM python:{sys.version_info.major}.{sys.version_info.minor}-slim"
        in (folder / "Dockerfile").read_text()
    )
    assert not any(
        "@" in line
        for name in ("README.md", "Dockerfile")
        for line in (folder / name).read_text().splitlines()
    )


def test_time_and_memory_of_each_case_are_reported(place, predicted):
    report = json.loads((predicted[0] / "resources.json").read_text())
    assert [row["case"] for row in report["cases"]] == ["a", "aa", "b"] and report["device"] in (
        "cpu",
        "cuda",
    )
    for row in report["cases"]:
        assert (
            row["seconds"] >= 0
            and row["peak_rss_mib"] > 100
            and ("peak_gpu_mib" in row) == (report["device"] == "cuda")
        )


def test_good_outputs_pass_the_check(place, predicted):
    done = check(place, predicted[0])
    assert done.returncode == 0 and "2 cases: all there" in done.stdout, done.stdout + done.stderr


def moved(image: nibabel.Nifti1Image) -> nibabel.Nifti1Image:
    affine = image.affine.copy()
    affine[0, 3] += 1
    return nibabel.Nifti1Image(np.asarray(image.dataobj), affine)


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
        (lambda image: None, "b.nii.gz is missing"),
    ],
)
def test_the_check_finds_what_is_wrong(place, predicted, tmp_path, change, said):
    shutil.copytree(predicted[0], tmp_path / "outputs")
    spoiled = change(nibabel.load(predicted[0] / "b.nii.gz"))
    (tmp_path / "outputs" / "b.nii.gz").unlink()
    if spoiled is not None:
        nibabel.save(spoiled, tmp_path / "outputs" / "b.nii.gz")
    (tmp_path / "outputs" / "more.nii.gz").write_bytes(b"")
    done = check(place, tmp_path / "outputs")
    assert (
        done.returncode == 1
        and said in done.stdout
        and "more.nii.gz in" in done.stdout
        and len(done.stdout.splitlines()) == 2
    )


def test_a_scan_that_cannot_be_read_costs_only_itself(predicted):
    outputs, said = predicted
    assert "2 of 3 cases" in said and "failed: aa" in said and not (outputs / "aa.nii.gz").exists()
    rows = json.loads((outputs / "resources.json").read_text())["cases"]
    assert ["error" in row for row in rows] == [False, True, False]


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
    script = {"__name__": "script", "__file__": str(place / "submission" / "check_outputs.py")}
    exec((place / "submission" / "check_outputs.py").read_text(), script)
    manager = LabelManager(entries["labels"], entries.get("regions_class_order"))
    logits = torch.cartesian_prod(*[torch.tensor([-9.0, 9.0])] * manager.num_segmentation_heads).T[
        :, None, None
    ]
    assert set(manager.convert_logits_to_segmentation(logits).unique().int().tolist()) == script[
        "known_labels"
    ](entries)


@pytest.mark.parametrize(
    "names, said",
    [
        ([], "no .nii.gz files"),
        (["a.nii.gz"], "must hold CASE_0000.nii.gz; it has a.nii.gz"),
        (["a_0000.nii.gz", "a_0001.nii.gz"], "takes 1 channels"),
        (["a_0001.nii.gz"], "a_0000.nii.gz, a_0001"),
    ],
)
def test_inputs_that_are_not_as_prescribed(place, tmp_path, names, said, monkeypatch):
    """The script's own function: starting Python for each would take four seconds."""
    for name in names:
        (tmp_path / name).write_bytes(b"")
    script = {"__name__": "script", "__file__": str(place / "submission" / "predict.py")}
    exec((place / "submission" / "predict.py").read_text(), script)
    with pytest.raises(SystemExit, match=said):
        script["find_cases"](tmp_path, 1)


def test_a_trainer_of_ones_own_comes_along(place, tmp_path, monkeypatch, capsys):
    model = shutil.copytree(place / "model", tmp_path / "model")
    checkpoint = model / "fold_0" / "checkpoint_final.pth"
    torch.save(
        torch.load(checkpoint, weights_only=False) | {"trainer_name": "TheirOwnTrainer"}, checkpoint
    )
    text = refused(capsys, model, tmp_path / "out", "-f", "0")
    assert (
        "does not load from the folder alone" in text
        and "TheirOwnTrainer" in text
        and "nnUNet_extTrainer" in text
    )
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "their_own.py").write_text(
        "from alice_nnunet.trainers.alice_trainer import AliceTrainer\n\n\n"
        "class TheirOwnTrainer(AliceTrainer):\n    pass\n"
    )
    monkeypatch.setenv("nnUNet_extTrainer", with_trainers(str(tmp_path / "own")))
    main([str(model), str(tmp_path / "out"), "-f", "0", "--disable_tta"])
    assert (tmp_path / "out" / "code" / "alice_nnunet" / "trainers" / "their_own.py").is_file()
    assert json.loads((tmp_path / "out" / "settings.json").read_text())["mirroring"] is False


def test_models_that_cannot_be_submitted(place, tmp_path, capsys):
    assert "no plans.json" in refused(capsys, place, tmp_path / "out")
    assert "there is one for 0, 1, all" in refused(
        capsys, place / "model", tmp_path / "out", "-f", "0", "3"
    )
    assert "no checkpoint_best.pth" in refused(
        capsys, place / "model", tmp_path / "out", "-chk", "checkpoint_best.pth"
    )
    assert "-step_size must be" in refused(
        capsys, place / "model", tmp_path / "out", "-step_size", "0"
    )
    assert "exists already" in refused(capsys, place / "model", place / "submission")
    model = shutil.copytree(place / "model", tmp_path / "model")
    checkpoint = model / "fold_0" / "checkpoint_final.pth"
    torch.save({"network_weights": {}}, checkpoint)
    assert "lacks trainer_name" in refused(capsys, model, tmp_path / "out")
    checkpoint.write_bytes(b"nothing")
    assert "not a readable checkpoint" in refused(capsys, model, tmp_path / "out")
    dataset = json.loads((model / "dataset.json").read_text())
    (model / "dataset.json").write_text(json.dumps(dataset | {"file_ending": ".nrrd"}))
    assert "'.nrrd'" in refused(capsys, model, tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
