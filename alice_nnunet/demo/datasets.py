"""The CT volumes that ship with the package, written as nnU-Net raw datasets."""

import shutil
from importlib.resources import files
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

from alice_nnunet.demo.tasks import TASKS, Task
from alice_nnunet.files import write_json_atomically

UNLABELED = "Dataset100_DemoUnlabeled"

TEST_PEOPLE = frozenset(person for task in TASKS for person in task.test)


def volumes() -> dict[str, Path]:
    """Case name -> file of every CT volume in the package."""
    folder = Path(str(files("alice_nnunet.demo") / "volumes"))
    return {
        path.name.removesuffix(".nii.gz"): path
        for path in sorted(folder.rglob("*.nii.gz"))
        if not path.name.endswith("_labels.nii.gz")
    }


def write_datasets(raw: Path) -> None:
    """Write the raw datasets: all but the test people without labels, and one for each task."""
    images = raw / UNLABELED / "imagesTr"
    images.mkdir(parents=True)
    for case, path in volumes().items():
        if case not in TEST_PEOPLE:
            shutil.copyfile(path, images / f"{case}_0000.nii.gz")
    write_dataset_json(raw / UNLABELED)

    for task in TASKS:
        write_labeled_cases(raw, task, "Tr", task.training)
        write_labeled_cases(raw, task, "Ts", task.test)
        numbers = {name: number for number, name in enumerate(task.labels, 1)}
        write_dataset_json(
            raw / task.dataset,
            numTraining=len(task.training),
            labels={"background": 0, **numbers},
        )


def write_dataset_json(dataset: Path, **entries: Any) -> None:
    """Write a dataset's dataset.json. entries: beside channels and file ending."""
    write_json_atomically(
        dataset / "dataset.json",
        {"channel_names": {"0": "CT"}, "file_ending": ".nii.gz", **entries},
    )


def write_labeled_cases(raw: Path, task: Task, split: str, people: tuple[str, ...]) -> None:
    """Write images and labels of these people to the task's dataset. split: Tr or Ts."""
    images = raw / task.dataset / f"images{split}"
    labels = raw / task.dataset / f"labels{split}"
    images.mkdir(parents=True)
    labels.mkdir()

    for case in people:
        shutil.copyfile(volumes()[case], images / f"{case}_0000.nii.gz")
        write_labels(case, task, labels / f"{case}.nii.gz")


def write_labels(case: str, task: Task, target: Path) -> None:
    """Write the labels of a case with the numbers of the task: 1 for its first label, ..."""
    source: Any = nibabel.load(volumes()[case].with_name(f"{case}_labels.nii.gz"))
    shipped = np.asarray(source.dataobj)

    merged = np.zeros(source.shape, np.uint8)
    for number, values in enumerate(task.shipped, 1):
        merged[np.isin(shipped, values)] = number

    nibabel.save(nibabel.Nifti1Image(merged, source.affine), target)


def canonical(path: Path) -> tuple[np.ndarray, tuple[float, float, float]]:
    """Read a NIfTI in RAS orientation. Returns the array (Z, Y, X) and spacing (z, y, x) in mm."""
    image = nibabel.as_closest_canonical(nibabel.load(path))
    array = np.asarray(image.dataobj).transpose(2, 1, 0)
    z, y, x = (float(edge) for edge in image.header.get_zooms()[::-1])
    return array, (z, y, x)
