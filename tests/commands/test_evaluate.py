"""alice-evaluate on the labels that ship with the package."""

import csv
import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
from scipy.ndimage import binary_erosion

import alice_nnunet
from alice_nnunet.commands.evaluate import main
from alice_nnunet.evaluation.organs import FLARE22
from alice_nnunet.files import locked

LABELS = sorted((Path(alice_nnunet.__file__).parent / "demo" / "volumes").glob("*_labels.nii.gz"))


def eroded(labels: np.ndarray) -> np.ndarray:
    return np.where(
        np.logical_or.reduce([binary_erosion(labels == i) for i in range(1, 14)]), labels, 0
    ).astype(labels.dtype)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    """Folders of label images: gt, gt shifted down by one voxel, and gt eroded by one voxel."""
    folder = tmp_path_factory.mktemp("evaluate")
    for name, change in (
        ("gt", lambda v: v),
        ("shifted", lambda v: np.roll(v, 1, 2)),
        ("eroded", eroded),
    ):
        (folder / name).mkdir()
        for path in LABELS:
            image = nibabel.load(path)
            nibabel.save(
                nibabel.Nifti1Image(change(np.asarray(image.dataobj)), image.affine, image.header),
                folder / name / path.name,
            )
    return folder


def failed(*words, capsys) -> str:
    """What alice-evaluate says on stderr when it refuses."""
    with pytest.raises(SystemExit) as left:
        main([str(word) for word in words])
    assert left.value.code == 2
    return capsys.readouterr().err


def rows(path: Path) -> dict:
    with path.open(newline="") as file:
        return {
            (row["predictions"], row["case"], row["organ"]): row for row in csv.DictReader(file)
        }


def test_flare_on_real_labels(folders, capsys, tmp_path):
    main(
        [
            str(folders / "shifted"),
            str(folders / "gt"),
            "-organs",
            "flare22",
            "-o",
            str(tmp_path / "new" / "out"),
            "-np",
            "2",
        ]
    )
    found = rows(tmp_path / "new" / "out" / "alice_evaluation.csv")
    assert len(found) == 13 * len(LABELS)
    for path in LABELS:
        reference, predicted = (
            np.asarray(nibabel.load(folders / name / path.name).dataobj)
            for name in ("gt", "shifted")
        )
        for label, organ in enumerate(FLARE22.organs, 1):
            r, p = reference == label, predicted == label
            if organ.reference_slices_only:
                p = p & r.any((0, 1))
            row = found[str(folders / "shifted"), path.name.removesuffix(".nii.gz"), organ.name]
            expected = 2 * (r & p).sum() / (r.sum() + p.sum()) if r.any() else 1.0
            assert (
                float(row["dsc"]) == pytest.approx(expected, abs=1e-6)
                and int(row["reference_voxels"]) == r.sum()
            )
            assert r.any() or float(row["nsd"]) == 1
    summary = json.loads((tmp_path / "new" / "out" / "alice_evaluation.json").read_text())
    liver = [float(row["dsc"]) for (_, _, organ), row in found.items() if organ == "liver"]
    mean = summary["predictions"][str(folders / "shifted")]["organs"]["liver"]["dsc"]["mean"]
    assert mean == pytest.approx(np.mean(liver), abs=1e-6)
    said = capsys.readouterr().out
    assert f"{100 * mean:.2f} +-" in said and "mean over organs" in said
    assert (tmp_path / "new" / "out" / "alice_evaluation.png").stat().st_size > 10000


def test_against_another_folder_with_the_labels_of_a_dataset(folders, capsys, tmp_path):
    names = {
        "background": 0,
        "kidneys": [2, 13],
        **{organ.name.replace(" ", "_"): i for i, organ in enumerate(FLARE22.organs, 1)},
    }
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": names, "file_ending": ".nii.gz"}))
    main(
        [
            str(folders / "gt"),
            str(folders / "gt"),
            "-dataset_json",
            str(tmp_path / "dataset.json"),
            "--flare_tolerances",
            "-tolerance",
            "1",
            "-against",
            str(folders / "eroded"),
            "-o",
            str(tmp_path),
            "-np",
            "1",
        ]
    )
    content = json.loads((tmp_path / "alice_comparison.json").read_text())
    assert content["organs"]["kidneys"] == {
        "labels": [2, 13],
        "tolerance_mm": 1.0,
        "reference_slices_only": False,
    }
    assert content["organs"]["duodenum"]["tolerance_mm"] == 7
    perfect, worse = content["predictions"].values()
    assert perfect["organs"]["liver"]["dsc"] == {"mean": 1.0, "std": 0.0, "n": len(LABELS)}
    assert perfect["organs"]["gallbladder"]["dsc"]["n"] < len(
        LABELS
    )  # in neither image: left out, as nnU-Net does
    liver = content["first_less_second"]["liver"]["dsc"]
    assert liver["mean"] == pytest.approx(1 - worse["organs"]["liver"]["dsc"]["mean"]) and liver[
        "p"
    ] == pytest.approx(2 / 2 ** len(LABELS))
    assert (
        len(rows(tmp_path / "alice_comparison.csv")) == 2 * 14 * len(LABELS)
        and (tmp_path / "alice_comparison.png").is_file()
    )
    assert "Wilcoxon" in capsys.readouterr().out


def test_what_cannot_be_evaluated_is_refused(folders, capsys, tmp_path):
    predicted, gt = tmp_path / "predicted", folders / "gt"
    predicted.mkdir()
    assert "give -dataset_json or -organs" in failed(predicted, gt, capsys=capsys)
    assert "has its own" in failed(
        predicted, gt, "-organs", "btcv", "-tolerance", "1", capsys=capsys
    )
    assert f"{tmp_path / 'nowhere'} is not a readable folder" in failed(
        gt, tmp_path / "nowhere", capsys=capsys
    )
    assert "no prediction for any" in failed(predicted, gt, "-organs", "flare22", capsys=capsys)
    first, second, *others = LABELS
    (predicted / first.name).write_bytes(first.read_bytes())
    assert f"{len(others) + 1} of {len(LABELS)} references have no prediction" in failed(
        predicted, gt, "-organs", "flare22", capsys=capsys
    )
    image = nibabel.load(second)
    nibabel.save(
        nibabel.Nifti1Image(np.asarray(image.dataobj)[:-1], image.affine), predicted / second.name
    )
    said = failed(predicted, gt, "-organs", "flare22", "--chill", capsys=capsys)
    assert (
        "1 of 2 predictions cannot be evaluated and nothing was written" in said
        and f"{second.name} has" in said
        and "voxels" in said
    )
    nibabel.save(
        nibabel.Nifti1Image(np.asarray(image.dataobj) + np.uint8(8), image.affine),
        predicted / second.name,
    )
    said = failed(predicted, gt, "-organs", "flare22", "--chill", "-np", "1", capsys=capsys)
    assert f"{second.name} has the label(s) " in said and "Traceback" not in said
    assert not [path for path in predicted.iterdir() if "alice" in path.name]
    assert "is PRED itself" in failed(
        predicted, gt, "-organs", "flare22", "-against", predicted, capsys=capsys
    )
    assert "-tolerance must be" in failed(predicted, gt, "-tolerance", "-1", capsys=capsys)
    assert "-organs: flare21 is neither" in failed(
        predicted, gt, "-organs", "flare21", capsys=capsys
    )
    assert "there is no file" in failed(
        predicted, gt, "-dataset_json", tmp_path / "no.json", capsys=capsys
    )
    assert "-np must be 1 or more" in failed(
        predicted, gt, "-organs", "flare22", "-np", "0", capsys=capsys
    )


def test_one_evaluation_at_a_time_writes_into_a_folder(folders, capsys, tmp_path):
    words = (folders / "shifted", folders / "gt", "-organs", "flare22", "-np", 1, "-o", tmp_path)
    with locked(tmp_path / "alice_evaluation.lock"):
        error = failed(*words, capsys=capsys)
    assert "is working in" in error and "alice_evaluation.lock" in error
    assert [path.name for path in tmp_path.iterdir()] == ["alice_evaluation.lock"]

    main([str(word) for word in words])
    names = {"alice_evaluation.csv", "alice_evaluation.json", "alice_evaluation.png"}
    assert {path.name for path in tmp_path.iterdir()} == names  # the lock is gone
