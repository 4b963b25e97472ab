"""alice-classify on real CT of many people, resampled small: it tells what anybody would."""

import csv
import json
from itertools import pairwise
from pathlib import Path

import nibabel
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from alice_nnunet.commands.classify import main
from tests.helpers.finetuning import write_checkpoint

LARGEST_AXIS = 40  # voxels of a scan
PEOPLE = 9  # of a class
CHESTS = ("4dlung113", "lidc0001", "lidc0314", "nlst101287")
ABDOMENS = ("acrinflt001_abd", "cptacpda_c3l00189", "crlm1004", "ts_example")

# A linear probe: with random weights, too, the mean of the tokens knows air, lung and bone.
PROBE = [
    "--set",
    "frozen=true",
    "size=16,32,32",
    "iterations=40",
    "warmup_iterations=4",
    "validate_every=10",
    "lr=0.05",
    "augment=false",
]


def shared_ct() -> Path:
    """CT of more people than the package ships, in `shared/data` beside the repository."""
    for parent in Path(__file__).resolve().parents:
        if (parent / "shared" / "data" / "sarcoma").is_dir():
            return parent / "shared" / "data"
    pytest.skip("no shared/data beside the repository")


def write_small(path: Path, image: nibabel.Nifti1Image) -> None:
    """Write every n-th voxel of a scan."""
    step = [-(-size // LARGEST_AXIS) for size in image.shape]
    small = image.slicer[:: step[0], :: step[1], :: step[2]]
    voxels = np.asarray(small.dataobj).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(voxels, small.affine), path)


def mean_auc(nnunet_folders: Path, scans: dict[str, nibabel.Nifti1Image], positive: str) -> float:
    """Train linear probes by the command; the mean AUC of three folds, each of other people.

    Args:
        nnunet_folders: nnU-Net's.
        scans: by case, which is `CLASS-PERSON` or `CLASS-PERSON-PART`.
        positive: one of the two classes.
    """
    images = nnunet_folders / "raw" / "Dataset009_Small" / "imagesTr"
    images.mkdir(parents=True)
    content = {"channel_names": {"0": "CT"}, "file_ending": ".nii.gz"}
    (images.parent / "dataset.json").write_text(json.dumps(content))

    lines = ["case,label,patient"]
    for case, image in scans.items():
        write_small(images / f"{case}_0000.nii.gz", image)
        name, person = case.split("-")[:2]
        lines.append(f"{case},{name},{person}")
    table = images.parent / "labels.csv"
    table.write_text("\n".join([*lines, ""]))

    weights = write_checkpoint(nnunet_folders / "random.pth")
    out = nnunet_folders / "out"
    given = ["9", "-labels", str(table), "-weights", str(weights), "-o", str(out), "-folds", "3"]
    main(["train", *given, "-np", "1", "-device", "cpu", *PROBE])

    with (out / "predictions.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert sorted(row["case"] for row in rows) == sorted(scans)
    aucs = []
    for run in sorted({row["run"] for row in rows}):
        tested = [row for row in rows if row["run"] == run]
        truth = [row["case"].startswith(positive) for row in tested]
        aucs.append(roc_auc_score(truth, [float(row[f"probability {positive}"]) for row in tested]))
    assert len(aucs) == 3
    return float(np.mean(aucs))


def test_torso_against_limb(nnunet_folders):
    data = shared_ct()
    torsos = sorted((data / "torso" / "images").glob("*.nii.gz"))[:PEOPLE]
    limbs = sorted((data / "sarcoma" / "images").glob("*.nii.gz"))[:PEOPLE]
    named = {"torso": torsos, "limb": limbs}
    scans = {
        f"{name}-{path.name.removesuffix('.nii.gz')}": nibabel.load(path)
        for name, paths in named.items()
        for path in paths
    }
    assert mean_auc(nnunet_folders, scans, "torso") > 0.9


def test_lungs_in_view_or_not(nnunet_folders, shipped_ct):
    """Three slabs of each scan: those of chests above the diaphragm, abdomens below the lungs."""
    scans = {}
    for name, people, share in (("lungs", CHESTS, (0.4, 1)), ("none", ABDOMENS, (0, 0.6))):
        for person in people:
            image = nibabel.load(shipped_ct[person])
            cuts = np.linspace(*share, 4) * image.shape[2]
            for part, (start, stop) in enumerate(pairwise(cuts)):
                slab = image.slicer[:, :, int(start) : int(stop) + 1]
                scans[f"{name}-{person}-{part}"] = slab
    assert mean_auc(nnunet_folders, scans, "lungs") > 0.9
