"""All steps on real CT, by the real commands: alice-demo with less data than a user gets, and less
training."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import nibabel
import numpy as np
import pytest

from alice_nnunet.demo import pipeline
from alice_nnunet.demo.datasets import UNLABELED, write_datasets
from alice_nnunet.demo.page import MATCHED_PEOPLE, PICTURES
from alice_nnunet.demo.pipeline import Budget, Demo
from alice_nnunet.demo.scores import predictions
from alice_nnunet.demo.tasks import ORGANS, RANDOM, STARTS, TASKS, TUMOURS
from tests.helpers.warm_commands import warm_commands

LARGEST_AXIS = 72  # voxels
LARGEST_TUMOUR_AXIS = 32  # in the dataset of tumours, which lie in the middle
UNLABELED_PEOPLE = (*MATCHED_PEOPLE, *ORGANS.training, TUMOURS.training[0])
EPOCHS = 1
ITERATIONS = 2


def write_smaller_datasets(raw: Path) -> None:
    """write_datasets, with five unlabeled people, and of every volume the part in the middle."""
    write_datasets(raw)
    for file in (raw / UNLABELED / "imagesTr").iterdir():
        if file.name.removesuffix("_0000.nii.gz") not in UNLABELED_PEOPLE:
            file.unlink()

    for file in raw.rglob("*.nii.gz"):
        largest = LARGEST_TUMOUR_AXIS if TUMOURS.dataset in file.parts else LARGEST_AXIS
        image = nibabel.load(file)
        cuts = [max(0, size - largest) // 2 for size in image.shape]
        middle = image.slicer[tuple(slice(cut, cut + largest) for cut in cuts)]
        nibabel.save(nibabel.Nifti1Image(np.asarray(middle.dataobj), middle.affine), file)


@pytest.fixture(scope="module")
def programs(tmp_path_factory) -> Iterator[Path]:
    """The commands, of which alice-embed learns for a few steps."""
    folder = tmp_path_factory.mktemp("programs")
    with warm_commands(folder, {"alice-embed": ["--set=iterations=4"]}) as programs:
        yield programs


@pytest.fixture(scope="module")
def demo(tmp_path_factory, programs) -> Demo:
    """A demo that has ended."""
    folder = tmp_path_factory.mktemp("demo")
    budget = Budget(pretraining_steps=4, epochs=EPOCHS, iterations=ITERATIONS)
    demo = Demo(folder, "vit", budget)
    demo.runner.environment["PATH"] = f"{programs}:{demo.runner.environment['PATH']}"

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "write_datasets", write_smaller_datasets)
        demo.run()
    return demo


def training_log(demo: Demo, task, start) -> str:
    (log,) = demo.fold(task, start).glob("training_log*.txt")
    return log.read_text()


def test_every_person_and_label_has_a_score_from_both_starts(demo):
    summary = json.loads((demo.out / "summary.json").read_text())
    found = [(score["task"], score["person"], score["label"]) for score in summary["scores"]]
    assert found == [
        (task.name, person, label)
        for task in TASKS
        for person in task.test
        for label in task.labels
    ]
    assert all(0 <= score[start.name] <= 1 for score in summary["scores"] for start in STARTS)

    for mean, task in zip(summary["means"], TASKS):
        of_task = [score for score in summary["scores"] if score["task"] == task.name]
        for start in STARTS:
            expected = np.mean([score[start.name] for score in of_task])
            assert abs(mean[start.name] - expected) < 1e-4


def test_the_page_shows_every_number_and_picture(demo):
    page = (demo.out / "index.html").read_text()
    for score in json.loads((demo.out / "summary.json").read_text())["scores"]:
        names = [score["task"], score["person"], score["label"]]
        dice = [f"{score[start.name]:.3f}" for start in STARTS]
        assert "".join(f"<td>{cell}</td>" for cell in names + dice) in page

    for name in PICTURES:
        assert name in page and (demo.out / name).read_bytes()[:4] == b"\x89PNG"


def test_both_starts_differ_in_nothing_but_the_weights(demo):
    for task in TASKS:
        plans = []
        for start in STARTS:
            model = demo.fold(task, start).parent
            plans.append(json.loads((model / "plans.json").read_text()))

            text = training_log(demo, task, start)
            losses = re.findall(r"train_loss", text)
            assert len(losses) == EPOCHS

            loaded = "Loaded 49 of 49 encoder tensors" in text and "Not loaded: none" in text
            assert loaded == (start is not RANDOM)
            assert ("no weights are loaded" in text) == (start is RANDOM)

        recipe = plans[0]["alice"]["recipe"]
        assert plans[0] == plans[1]
        assert recipe["seed"] == 1 and recipe["epochs"] == EPOCHS
        assert recipe["iterations_per_epoch"] == ITERATIONS


def test_test_people_are_in_no_folder_of_a_training(demo):
    trained_on = [demo.raw / UNLABELED, demo.preprocessed]
    trained_on += [demo.raw / task.dataset / "imagesTr" for task in TASKS]
    names = [path.name for folder in trained_on for path in folder.rglob("*")]
    assert any(TUMOURS.training[0] in name for name in names)
    for task in TASKS:
        for person in task.test:
            assert not [name for name in names if person in name]


def test_predictions_lie_on_the_scans(demo):
    for task in TASKS:
        for person in task.test:
            image = nibabel.load(demo.raw / task.dataset / "imagesTs" / f"{person}_0000.nii.gz")
            for start in STARTS:
                folder = predictions(demo.out, task, start)
                predicted = nibabel.load(folder / f"{person}.nii.gz")
                assert predicted.shape == image.shape
                assert np.allclose(predicted.affine, image.affine)
