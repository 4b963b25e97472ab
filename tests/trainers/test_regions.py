"""nnFormer with region-based labels: all outputs in training, one with mirroring in prediction."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import nibabel
import numpy as np
import torch

import alice_nnunet.trainers
from tests.helpers.finetuning import plan_by_hand, write_case, write_checkpoint, write_dataset
from tests.helpers.training import NAME, plan


def run(*command: str) -> str:
    """Run an installed command. Returns what it printed."""
    program = shutil.which(command[0])
    done = subprocess.run([program, *command[1:]], text=True, capture_output=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def make_regions(raw: Path) -> None:
    """Label the bones as a region inside what is dense."""
    for file in (raw / "labelsTr").iterdir():
        image = nibabel.load(file)
        ct = nibabel.load(raw / "imagesTr" / file.name.replace(".nii", "_0000.nii"))
        bone = np.asarray(ct.dataobj) > 150
        labels = (np.asarray(image.dataobj) + bone).astype(np.uint8)
        assert np.unique(labels).tolist() == [0, 1, 2]
        nibabel.save(nibabel.Nifti1Image(labels, image.affine), file)

    dataset = json.loads((raw / "dataset.json").read_text())
    dataset["labels"] = {"background": 0, "dense": [1, 2], "bone": [2]}
    dataset["regions_class_order"] = [1, 2]
    (raw / "dataset.json").write_text(json.dumps(dataset))


def test_training_and_prediction_with_regions(nnunet_folders, real_ct, monkeypatch, programs):
    monkeypatch.setenv("PATH", str(programs), prepend=os.pathsep)
    monkeypatch.setenv("nnUNet_extTrainer", os.pathsep.join(alice_nnunet.trainers.__path__))
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")

    raw = write_dataset(nnunet_folders / "raw", real_ct)
    make_regions(raw)
    plan_by_hand(raw, nnunet_folders / "preprocessed" / NAME)
    write_checkpoint(nnunet_folders / "c.pth", encoder="nnformer")
    plan(nnunet_folders, "-epochs", "1", "-iterations", "2")
    run(
        "nnUNetv2_preprocess",
        "-d",
        "7",
        "-plans_name",
        "AlicePlans",
        "-c",
        "3d_fullres",
        "-np",
        "1",
    )

    common = ("-tr", "AliceTrainer", "-p", "AlicePlans", "-device", "cpu")
    log = run("nnUNetv2_train", "7", "3d_fullres", "0", *common)
    assert "Not loaded: none" in log and "Mean Validation Dice" in log

    # a channel for each region, none for background
    results = nnunet_folders / "results" / NAME / "AliceTrainer__AlicePlans__3d_fullres" / "fold_0"
    trained = torch.load(results / "checkpoint_final.pth", weights_only=False)["network_weights"]
    assert [trained[f"heads.{level}.weight"].shape[1] for level in range(2)] == [2, 2]
    summary = json.loads((results / "validation" / "summary.json").read_text())
    assert summary["mean"].keys() == {"(1, 2)", "(2,)"}

    images = nnunet_folders / "in"
    write_case(images / "a_0000.nii.gz", np.asarray(real_ct.dataobj)[:20, :17, :16])
    folders = ("-i", str(images), "-o", str(nnunet_folders / "out"))
    model = ("-d", "7", "-c", "3d_fullres", "-f", "0", "-npp", "1", "-nps", "1")
    run("nnUNetv2_predict", *folders, *model, *common)

    prediction = nibabel.load(nnunet_folders / "out" / "a.nii.gz")
    assert prediction.shape == (20, 17, 16)
    assert set(np.unique(np.asarray(prediction.dataobj))) <= {0, 1, 2}
