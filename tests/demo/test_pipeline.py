"""All steps on real CT, by the real commands: alice-demo with less training than a user gets."""

import json

import nibabel
import numpy as np

from alice_nnunet.demo.datasets import LABELED, LABELS, TEST_PERSON
from alice_nnunet.demo.page import PICTURES
from alice_nnunet.demo.pipeline import Demo


def test_from_unlabeled_scans_to_a_segmentation(tmp_path, programs):
    demo = Demo(tmp_path, "vit", pretraining_steps=20, epochs=1, iterations=4)
    demo.environment["PATH"] = f"{programs}:{demo.environment['PATH']}"
    demo.run()

    summary = json.loads((tmp_path / "summary.json").read_text())
    assert set(summary["dice"]) == set(LABELS)
    assert all(0 <= score <= 1 for score in summary["dice"].values())
    assert len(summary["steps"]) == 8

    page = (tmp_path / "index.html").read_text()
    for name in PICTURES:
        assert name in page and (tmp_path / name).read_bytes()[:4] == b"\x89PNG"

    image = nibabel.load(
        tmp_path / "nnUNet_raw" / LABELED / "imagesTs" / f"{TEST_PERSON}_0000.nii.gz"
    )
    predicted = nibabel.load(tmp_path / "prediction" / f"{TEST_PERSON}.nii.gz")
    assert predicted.shape == image.shape and np.allclose(predicted.affine, image.affine)

    (log,) = (demo.model / "fold_0").glob("training_log*.txt")
    text = log.read_text()
    assert "Loaded 49 of 49 encoder tensors" in text and "Not loaded: none" in text
