"""The CT volumes that ship with the package, written as two nnU-Net raw datasets."""

import shutil
from importlib.resources import files
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

from alice_nnunet.files import write_json_atomically

UNLABELED = "Dataset100_DemoUnlabeled"
LABELED = "Dataset101_DemoLabeled"

TEST_PERSON = "ts_example"  # seen by no step but the prediction
TRAINING_PEOPLE = ("lidc0001", "ts_dicomslab")

# Name -> label values in the files, which use the numbers of FLARE 2022.
LABELS = {
    "liver": (1,),
    "spleen": (3,),
    "kidneys": (2, 13),
    "aorta": (5,),
}


def volumes() -> dict[str, Path]:
    """Case name -> file of every CT volume in the package."""
    folder = Path(str(files("alice_nnunet.demo") / "volumes"))
    return {
        path.name.removesuffix(".nii.gz"): path
        for path in sorted(folder.glob("*.nii.gz"))
        if not path.name.endswith("_labels.nii.gz")
    }


def write_datasets(raw: Path) -> None:
    """Write both raw datasets to raw: all but the test person unlabeled, three people labeled."""
    dataset_json = {"channel_names": {"0": "CT"}, "file_ending": ".nii.gz"}

    images = raw / UNLABELED / "imagesTr"
    images.mkdir(parents=True)
    for case, path in volumes().items():
        if case != TEST_PERSON:
            shutil.copyfile(path, images / f"{case}_0000.nii.gz")
    write_json_atomically(raw / UNLABELED / "dataset.json", dataset_json)

    write_labeled_cases(raw / LABELED, "Tr", TRAINING_PEOPLE)
    write_labeled_cases(raw / LABELED, "Ts", (TEST_PERSON,))
    numbers = {name: number for number, name in enumerate(LABELS, 1)}
    write_json_atomically(
        raw / LABELED / "dataset.json",
        {
            **dataset_json,
            "numTraining": len(TRAINING_PEOPLE),
            "labels": {"background": 0, **numbers},
        },
    )


def write_labeled_cases(dataset: Path, split: str, people: tuple[str, ...]) -> None:
    """Write images and labels of these people to the dataset's folders. split: Tr or Ts."""
    images = dataset / f"images{split}"
    labels = dataset / f"labels{split}"
    images.mkdir(parents=True)
    labels.mkdir()

    for case in people:
        shutil.copyfile(volumes()[case], images / f"{case}_0000.nii.gz")
        write_labels(case, labels / f"{case}.nii.gz")


def write_labels(case: str, target: Path) -> None:
    """Write the labels of a case with the numbers of the demo: 1 for the first of LABELS, ..."""
    source: Any = nibabel.load(volumes()[case].with_name(f"{case}_labels.nii.gz"))
    flare = np.asarray(source.dataobj)

    merged = np.zeros(source.shape, np.uint8)
    for number, values in enumerate(LABELS.values(), 1):
        merged[np.isin(flare, values)] = number

    nibabel.save(nibabel.Nifti1Image(merged, source.affine), target)


def canonical(path: Path) -> tuple[np.ndarray, tuple[float, float, float]]:
    """Read a NIfTI in RAS orientation. Returns the array (Z, Y, X) and spacing (z, y, x) in mm."""
    image = nibabel.as_closest_canonical(nibabel.load(path))
    array = np.asarray(image.dataobj).transpose(2, 1, 0)
    z, y, x = (float(edge) for edge in image.header.get_zooms()[::-1])
    return array, (z, y, x)
