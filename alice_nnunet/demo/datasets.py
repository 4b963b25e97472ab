"""The CT volumes that ship with the package, laid out as the two nnU-Net raw datasets of the demo."""

import shutil
from importlib.resources import files
from pathlib import Path

import nibabel
import numpy as np

from alice_nnunet.files import write_json_atomically

UNLABELED, LABELED = "Dataset100_DemoUnlabeled", "Dataset101_DemoLabeled"
TEST_PERSON = "ts_example"  # no step but the prediction sees this person
TRAINING_PEOPLE = ("lidc0001", "ts_dicomslab")
LABELS = {
    "liver": (1,),
    "spleen": (3,),
    "kidneys": (2, 13),
    "aorta": (5,),
}  # from FLARE 2022's numbers


def volumes() -> dict[str, Path]:
    """Case name -> file of every volume in the package."""
    folder = Path(str(files("alice_nnunet.demo") / "volumes"))
    return {
        p.name.removesuffix(".nii.gz"): p
        for p in sorted(folder.glob("*.nii.gz"))
        if not p.name.endswith("_labels.nii.gz")
    }


def write_datasets(raw: Path) -> None:
    """Make both raw datasets in raw: everyone but the test person without labels, three people with labels."""
    dataset_json = {"channel_names": {"0": "CT"}, "file_ending": ".nii.gz"}
    images = raw / UNLABELED / "imagesTr"
    images.mkdir(parents=True)
    for case, path in volumes().items():
        if case != TEST_PERSON:
            shutil.copyfile(path, images / f"{case}_0000.nii.gz")
    write_json_atomically(raw / UNLABELED / "dataset.json", dataset_json)
    for split, people in (("Tr", TRAINING_PEOPLE), ("Ts", (TEST_PERSON,))):
        for kind in ("images", "labels"):
            (raw / LABELED / f"{kind}{split}").mkdir(parents=True)
        for case in people:
            shutil.copyfile(
                volumes()[case], raw / LABELED / f"images{split}" / f"{case}_0000.nii.gz"
            )
            write_labels(case, raw / LABELED / f"labels{split}" / f"{case}.nii.gz")
    write_json_atomically(
        raw / LABELED / "dataset.json",
        {
            **dataset_json,
            "numTraining": len(TRAINING_PEOPLE),
            "labels": {"background": 0, **{n: i + 1 for i, n in enumerate(LABELS)}},
        },
    )


def write_labels(case: str, target: Path) -> None:
    """The labels of a case with the demo's few numbers."""
    source = nibabel.load(volumes()[case].with_name(f"{case}_labels.nii.gz"))
    flare, merged = np.asarray(source.dataobj), np.zeros(source.shape, np.uint8)
    for number, wanted in enumerate(LABELS.values(), 1):
        merged[np.isin(flare, wanted)] = number
    nibabel.save(nibabel.Nifti1Image(merged, source.affine), target)


def canonical(path: Path) -> tuple[np.ndarray, tuple[float, float, float]]:
    """A NIfTI in canonical RAS: (Z, Y, X) array and spacing (z, y, x) in mm."""
    image = nibabel.as_closest_canonical(nibabel.load(path))
    return np.asarray(image.dataobj).transpose(2, 1, 0), tuple(
        float(s) for s in image.header.get_zooms()[::-1]
    )
