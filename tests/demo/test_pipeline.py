"""All steps on real CT, by the real commands: alice-demo with less data than a user gets, and less
training."""

import json
from collections.abc import Iterator
from pathlib import Path

import nibabel
import numpy as np
import pytest

from alice_nnunet.demo import pipeline
from alice_nnunet.demo.datasets import (
    LABELED,
    LABELS,
    TEST_PERSON,
    TRAINING_PEOPLE,
    UNLABELED,
    write_datasets,
)
from alice_nnunet.demo.page import MATCHED_PEOPLE, PICTURES
from alice_nnunet.demo.pipeline import Demo
from tests.helpers.warm_commands import warm_commands

LARGEST_AXIS = 72  # voxels


def write_smaller_datasets(raw: Path) -> None:
    """write_datasets, with four unlabeled people, and of every volume the part in the middle."""
    write_datasets(raw)
    for file in (raw / UNLABELED / "imagesTr").iterdir():
        if file.name.removesuffix("_0000.nii.gz") not in (*MATCHED_PEOPLE, *TRAINING_PEOPLE):
            file.unlink()

    for file in raw.rglob("*.nii.gz"):
        image = nibabel.load(file)
        cuts = [max(0, size - LARGEST_AXIS) // 2 for size in image.shape]
        middle = image.slicer[tuple(slice(cut, cut + LARGEST_AXIS) for cut in cuts)]
        nibabel.save(nibabel.Nifti1Image(np.asarray(middle.dataobj), middle.affine), file)


@pytest.fixture
def programs(tmp_path_factory) -> Iterator[Path]:
    """The commands, of which alice-embed learns for a few steps."""
    folder = tmp_path_factory.mktemp("programs")
    with warm_commands(folder, {"alice-embed": ["--set=iterations=4"]}) as programs:
        yield programs


def test_from_unlabeled_scans_to_a_segmentation(tmp_path, programs, monkeypatch):
    monkeypatch.setattr(pipeline, "write_datasets", write_smaller_datasets)
    demo = Demo(tmp_path, "vit", pretraining_steps=4, epochs=1, iterations=1)
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
