"""The whole line on real CT, by the real commands: alice-demo with less training than a user gets."""

import json

import nibabel
import numpy as np
import pytest

from alice_nnunet.commands.demo import Demo, dice, main
from alice_nnunet.demo.datasets import LABELED, LABELS, TEST_PERSON, UNLABELED, write_datasets


def test_the_datasets_keep_the_test_person_apart(tmp_path):
    write_datasets(tmp_path)
    unlabeled = {p.name for p in (tmp_path / UNLABELED / "imagesTr").iterdir()}
    labeled = {p.name for p in (tmp_path / LABELED / "imagesTr").iterdir()}
    assert len(unlabeled) >= 5 and len(labeled) >= 2
    assert not any(TEST_PERSON in name for name in unlabeled | labeled)
    assert [p.name for p in (tmp_path / LABELED / "imagesTs").iterdir()] == [
        f"{TEST_PERSON}_0000.nii.gz"
    ]
    labels = nibabel.load(tmp_path / LABELED / "labelsTs" / f"{TEST_PERSON}.nii.gz")
    assert set(np.unique(labels.dataobj)) == set(range(len(LABELS) + 1))


def test_dice_is_the_formula():
    a, b = np.array([1, 1, 0, 0], bool), np.array([1, 0, 1, 0], bool)
    assert dice(a, b) == 0.5 and dice(a, a) == 1 and dice(a, ~a) == 0 and dice(a & ~a, b & ~b) == 1


def test_a_folder_with_something_in_it_is_refused(tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(SystemExit) as left:
        main(["-o", str(tmp_path)])
    assert left.value.code == 2 and "choose another one" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_from_unlabeled_scans_to_a_segmentation(tmp_path):
    Demo(tmp_path, "vit", pretraining_steps=20, epochs=1, iterations=4).whole()
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert set(summary["dice"]) == set(LABELS) and all(
        0 <= score <= 1 for score in summary["dice"].values()
    )
    assert len(summary["steps"]) == 8
    page = (tmp_path / "index.html").read_text()
    for name in (
        "matches.png",
        "pair.png",
        "reconstruction.png",
        "pretraining.png",
        "finetuning.png",
        "prediction.png",
    ):
        assert name in page and (tmp_path / name).read_bytes()[:4] == b"\x89PNG"
    image = nibabel.load(
        tmp_path / "nnUNet_raw" / LABELED / "imagesTs" / f"{TEST_PERSON}_0000.nii.gz"
    )
    predicted = nibabel.load(tmp_path / "prediction" / f"{TEST_PERSON}.nii.gz")
    assert predicted.shape == image.shape and np.allclose(predicted.affine, image.affine)
    (log,) = (
        tmp_path / "nnUNet_results" / LABELED / "AliceTrainer__AlicePlans__3d_fullres" / "fold_0"
    ).glob("training_log*.txt")
    assert (
        "Loaded 49 of 49 encoder tensors" in log.read_text()
        and "Not loaded: none" in log.read_text()
    )
