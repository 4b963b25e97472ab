"""A labeled dataset, and nnU-Net's own files of it."""

import json
import os

import nibabel
import numpy as np
import pytest

from alice_nnunet.errors import UserError
from alice_nnunet.finetuning.seeded_loading import VARIABLE
from alice_nnunet.planning import labeled_dataset
from alice_nnunet.planning.labeled_dataset import (
    canonical_axes,
    labeled_cases,
    open_labeled_dataset,
)
from tests.helpers.finetuning import plan_by_hand, stock_plans, write_case, write_dataset


@pytest.mark.parametrize(
    "codes, axes", [("LPS", [0, 1, 2]), ("RAS", [0, 1, 2]), ("SAL", [2, 1, 0]), ("PSR", [1, 2, 0])]
)
def test_axes_of_a_file(tmp_path, codes, axes):
    voxels = np.zeros((4, 5, 6), np.int16)  # along L, P, S
    write_case(tmp_path / "a.nii.gz", voxels, codes)
    assert canonical_axes(tmp_path / "a.nii.gz") == axes
    stored = nibabel.load(tmp_path / "a.nii.gz").shape[::-1]
    assert [stored[axis] for axis in axes] == [6, 5, 4]


def test_first_channel_of_every_labeled_case(tmp_path, real_ct):
    cases = labeled_cases(write_dataset(tmp_path, real_ct, cases=2))
    assert {case: files.images[0].name for case, files in cases.items()} == {
        "case0": "case0_0000.nii.gz",
        "case1": "case1_0000.nii.gz",
    }
    with pytest.raises(UserError, match="2 of 2 cases have none in labelsTr"):
        labeled_cases(write_dataset(tmp_path, real_ct, "Dataset008_Bare", cases=2, labels=False))
    with pytest.raises(UserError, match="no dataset Dataset009"):
        labeled_cases(tmp_path / "Dataset009_None")


def test_missing_files_are_nnunets_to_make(nnunet_folders, real_ct, monkeypatch, capsys):
    write_dataset(nnunet_folders / "raw", real_ct, cases=2)
    folder = nnunet_folders / "preprocessed" / "Dataset007_Body"
    made = []

    def extract(self):
        made.append("fingerprint")
        folder.mkdir(exist_ok=True)
        (folder / "dataset_fingerprint.json").write_text(
            json.dumps({"spacings": [[3.0, 2.0, 1.0]] * 2, "shapes_after_crop": [[16, 32, 30]] * 2})
        )
        print("noise")

    def plan(self):
        made.append("plans")
        (folder / "nnUNetPlans.json").write_text(json.dumps(stock_plans()))

    monkeypatch.setattr(labeled_dataset.DatasetFingerprintExtractor, "run", extract)
    monkeypatch.setattr(labeled_dataset.ExperimentPlanner, "plan_experiment", plan)
    for _ in range(2):
        dataset = open_labeled_dataset("7", 1)
    assert made == ["fingerprint", "plans"] and "noise" not in capsys.readouterr().out
    assert dataset.sizes == [[16, 32, 30]] * 2 and dataset.spacings[0] == [3.0, 2.0, 1.0]


def test_the_planner_runs_where_batches_are_made_without_processes(
    nnunet_folders, real_ct, monkeypatch
):
    """nnU-Net's planner gives this number to torch.set_num_threads, which refuses 0."""
    raw = write_dataset(nnunet_folders / "raw", real_ct)
    plan_by_hand(raw, nnunet_folders / "preprocessed" / raw.name)
    plans = nnunet_folders / "preprocessed" / raw.name / "nnUNetPlans.json"
    plans.unlink()
    seen = []

    def plan(self):
        seen.append(os.environ[VARIABLE])
        plans.write_text(json.dumps(stock_plans()))

    monkeypatch.setattr(labeled_dataset.ExperimentPlanner, "plan_experiment", plan)
    monkeypatch.setenv(VARIABLE, "0")
    open_labeled_dataset("7", 1)
    assert seen == ["1"] and os.environ[VARIABLE] == "0"


def test_a_failure_of_nnunet_is_one_line(nnunet_folders, real_ct, monkeypatch):
    write_dataset(nnunet_folders / "raw", real_ct, cases=2)

    def fail(self):
        raise RuntimeError("Some background worker is 6 feet under. Yuck. \nmore")

    monkeypatch.setattr(labeled_dataset.DatasetFingerprintExtractor, "run", fail)
    with pytest.raises(UserError, match=r"6 feet under.*--verify_dataset_integrity") as caught:
        open_labeled_dataset("7", 1)
    assert "\n" not in str(caught.value)
