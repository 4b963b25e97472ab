"""What fine_tuning.py segments, in whom, and its raw datasets."""

import json
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np

PRETRAINED_ON = 16  # people with a sarcoma
MOST_LABELED = 8
SPLIT_SEED = 0  # of which people with a sarcoma are pretrained on, fine-tuned on and segmented


@dataclass(frozen=True)
class Fold:
    """Who is fine-tuned on and who is segmented: a fold of nnU-Net."""

    training: list[str]
    test: list[str]


@dataclass(frozen=True)
class Task:
    """The raw datasets of one comparison.

    Attributes:
        unlabeled: name of the dataset that is pretrained on.
        scans: its files.
        labeled: name of the dataset that is fine-tuned on.
        source: the folder of its people, with images/ and labels/.
        labels: name -> values in the files of labels. In the dataset the first name is 1, ...
        folds: of the labeled people.
    """

    unlabeled: str
    scans: list[Path]
    labeled: str
    source: Path
    labels: dict[str, tuple[int, ...]]
    folds: list[Fold]

    @property
    def people(self) -> list[str]:
        """All who are labeled."""
        return sorted({person for fold in self.folds for person in (*fold.training, *fold.test)})


def sarcoma(data: Path, labeled: int) -> Task:
    """Tumours of 12 people. Torsos without labels and 16 people with a sarcoma are pretrained on.

    Of the 8 other people with a sarcoma, the first are labeled.
    """
    shuffled = [
        str(name)
        for name in np.random.default_rng(SPLIT_SEED).permutation(labeled_in(data / "sarcoma"))
    ]
    unlabeled = [data / "sarcoma/images" / f"{name}.nii.gz" for name in shuffled[:PRETRAINED_ON]]
    others = shuffled[PRETRAINED_ON:]
    return Task(
        "Dataset025_Mixed",
        [*torsos_without_labels(data), *unlabeled],
        "Dataset026_Sarcoma",
        data / "sarcoma",
        {"tumour": (1,)},
        [Fold(others[:labeled], others[MOST_LABELED:])],
    )


def organs(data: Path, labeled: int) -> Task:
    """Organs of the two labeled people with a whole liver, each from the other and a slab.

    Torsos without labels are pretrained on. The values are those of FLARE 2022.
    """
    return Task(
        "Dataset024_Torsos",
        torsos_without_labels(data),
        "Dataset027_Organs",
        data / "torso",
        {"liver": (1,), "spleen": (3,), "kidneys": (2, 13), "aorta": (5,), "stomach": (11,)},
        [
            Fold(["lidc0001", "ts_dicomslab"], ["ts_example"]),
            Fold(["ts_example", "ts_dicomslab"], ["lidc0001"]),
        ],
    )


TASKS = {"sarcoma": sarcoma, "organs": organs}


def labeled_in(folder: Path) -> list[str]:
    """Names of the people in a folder who have labels."""
    return sorted(file.name.removesuffix(".nii.gz") for file in (folder / "labels").iterdir())


def torsos_without_labels(data: Path) -> list[Path]:
    """Their files."""
    labeled = labeled_in(data / "torso")
    files = sorted((data / "torso/images").glob("*.nii.gz"))
    return [file for file in files if file.name.removesuffix(".nii.gz") not in labeled]


def write_datasets(task: Task, raw: Path) -> None:
    """Write both raw datasets, images as links. What is there stays."""
    for scan in task.scans:
        link(scan, raw / task.unlabeled / "imagesTr")
    for person in task.people:
        link(task.source / "images" / f"{person}.nii.gz", raw / task.labeled / "imagesTr")
        write_labels(task, person, raw / task.labeled / "labelsTr")

    channels = {"channel_names": {"0": "CT"}, "file_ending": ".nii.gz"}
    (raw / task.unlabeled / "dataset.json").write_text(json.dumps(channels))
    labels = {name: number for number, name in enumerate(["background", *task.labels])}
    entries = {**channels, "labels": labels, "numTraining": len(task.people)}
    (raw / task.labeled / "dataset.json").write_text(json.dumps(entries))


def link(file: Path, folder: Path) -> None:
    """Link a volume into a folder of images."""
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / file.name.replace(".nii.gz", "_0000.nii.gz")
    if not target.exists():
        target.symlink_to(file.resolve())


def write_labels(task: Task, person: str, folder: Path) -> None:
    """Write a person's labels with the numbers of the dataset."""
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{person}.nii.gz"
    if target.exists():
        return

    source = nibabel.load(task.source / "labels" / target.name)
    values = np.asarray(source.dataobj)
    merged = np.zeros(source.shape, np.uint8)
    for number, of_label in enumerate(task.labels.values(), 1):
        merged[np.isin(values, of_label)] = number
    nibabel.save(nibabel.Nifti1Image(merged, source.affine), target)
