"""nnFormer with nnU-Net's region-based labels: deep supervision in training, one output and mirroring in prediction."""

import json
import os
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import torch
from nnunetv2.experiment_planning.plan_and_preprocess_api import preprocess_dataset

import alice_nnunet.trainers
from alice_nnunet.commands.plan import main as alice_plan
from tests.helpers.finetuning import plan_by_hand, write_case, write_checkpoint, write_dataset

NAME = "Dataset007_Body"


def run(*command: str) -> str:
    done = subprocess.run(
        [Path(sys.executable).parent / command[0], *command[1:]],
        text=True,
        capture_output=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def test_training_and_prediction_with_regions(nnunet_folders, real_ct, monkeypatch):
    for name, value in {
        "nnUNet_extTrainer": os.pathsep.join(alice_nnunet.trainers.__path__),
        "nnUNet_n_proc_DA": "0",
    }.items():
        monkeypatch.setenv(name, value)
    raw, preprocessed = (
        write_dataset(nnunet_folders / "raw", real_ct),
        nnunet_folders / "preprocessed" / NAME,
    )
    for file in (raw / "labelsTr").iterdir():  # its bones are a region within what is dense
        image, ct = (
            nibabel.load(file),
            nibabel.load(raw / "imagesTr" / file.name.replace(".nii", "_0000.nii")),
        )
        labels = (np.asarray(image.dataobj) + (np.asarray(ct.dataobj) > 150)).astype(np.uint8)
        assert np.unique(labels).tolist() == [0, 1, 2]
        nibabel.save(nibabel.Nifti1Image(labels, image.affine), file)
    dataset = json.loads((raw / "dataset.json").read_text())
    dataset |= {
        "labels": {"background": 0, "dense": [1, 2], "bone": [2]},
        "regions_class_order": [1, 2],
    }
    (raw / "dataset.json").write_text(json.dumps(dataset))
    plan_by_hand(raw, preprocessed)
    weights = write_checkpoint(nnunet_folders / "c.pth", encoder="nnformer")
    alice_plan(
        ["-d", "7", "-weights", str(weights), "-epochs", "1", "-iterations", "2", "-np", "1"]
    )
    preprocess_dataset(7, "AlicePlans", ["3d_fullres"], [1])
    common = ("-tr", "AliceTrainer", "-p", "AlicePlans", "-device", "cpu")
    log = run("nnUNetv2_train", "7", "3d_fullres", "0", *common)
    assert "Not loaded: none" in log and "Mean Validation Dice" in log
    results = nnunet_folders / "results" / NAME / "AliceTrainer__AlicePlans__3d_fullres" / "fold_0"
    trained = torch.load(results / "checkpoint_final.pth", weights_only=False)["network_weights"]
    assert [trained[f"heads.{level}.weight"].shape[1] for level in range(2)] == [
        2,
        2,
    ]  # a channel for each region, none for background
    assert json.loads((results / "validation" / "summary.json").read_text())["mean"].keys() == {
        "(1, 2)",
        "(2,)",
    }

    write_case(nnunet_folders / "in" / "a_0000.nii.gz", np.asarray(real_ct.dataobj)[:20, :17, :16])
    run(
        "nnUNetv2_predict",
        "-i",
        str(nnunet_folders / "in"),
        "-o",
        str(nnunet_folders / "out"),
        "-d",
        "7",
        "-c",
        "3d_fullres",
        "-f",
        "0",
        "-npp",
        "1",
        "-nps",
        "1",
        *common,
    )
    prediction = nibabel.load(nnunet_folders / "out" / "a.nii.gz")
    assert prediction.shape == (20, 17, 16) and set(np.unique(np.asarray(prediction.dataobj))) <= {
        0,
        1,
        2,
    }
