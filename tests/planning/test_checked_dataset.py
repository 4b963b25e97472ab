"""Labeled datasets that alice-plan refuses by the names of their files, and what corrects them."""

import json
import shutil

import nibabel
import numpy as np
import pytest

from alice_nnunet.checks.findings import NO_DECISIONS, Decisions
from alice_nnunet.errors import UserError
from alice_nnunet.planning.checked_dataset import CHECKED, check_dataset, check_intensities
from alice_nnunet.planning.labeled_dataset import labeled_cases
from tests.helpers.finetuning import write_dataset

TAKE = Decisions(take=frozenset({"image-geometry", "sform", "3d"}), fill_nan=True)


@pytest.fixture
def folder(tmp_path, real_ct):
    return write_dataset(tmp_path / "raw", real_ct, cases=2)


@pytest.fixture
def check(folder, tmp_path, capsys):
    """A function that checks the dataset and returns what it printed."""

    def run(decisions=NO_DECISIONS) -> str:
        check_dataset(folder, tmp_path / "preprocessed", labeled_cases(folder), 1, decisions)
        return capsys.readouterr().out

    return run


def change(path, voxels=None, affine=None, edit=None) -> None:
    """Rewrite a file with other voxels, another affine, or what edit does to the image."""
    image = nibabel.load(path)
    old = np.asarray(image.dataobj)
    new = old if voxels is None else voxels(old)
    made = nibabel.Nifti1Image(new, image.affine if affine is None else affine @ image.affine)
    if edit:
        edit(made)
    nibabel.save(made, path)


def with_nan(voxels):
    voxels = voxels.astype(np.float32)
    voxels[3, 4, 5] = np.nan
    return voxels


def contradict(image) -> None:
    image.set_qform(np.diag([-1.0, 1, 1, 1]) @ image.affine, 1)


def forget_place(image) -> None:
    image.set_sform(np.diag([3.0, 3.0, 3.0, 1.0]))


LABEL = "labelsTr/case1.nii.gz"
IMAGE = "imagesTr/case1_0000.nii.gz"
FAULTS = {
    "mirrored": (LABEL, {"affine": np.diag([-1.0, 1, 1, 1])}, "lies elsewhere than its image"),
    "without affine": (LABEL, {"edit": forget_place}, "lies elsewhere than its image"),
    "other spacing": (LABEL, {"affine": np.diag([1, 1, 1.1, 1])}, "lies elsewhere than its image"),
    "inverted": (IMAGE, {"voxels": lambda v: -v}, "not look like HU"),
    "zero to one": (IMAGE, {"voxels": lambda v: ((v + 160) / 400).clip(0, 1)}, "not look like HU"),
    "4D image": (IMAGE, {"voxels": lambda v: np.stack([v, v], -1)}, "not a 3D volume"),
    "short": (LABEL, {"voxels": lambda v: v[:, :, :-1]}, "30 x 32 x 15 voxels"),
    "halves": (LABEL, {"voxels": lambda v: v * 0.5}, "not whole numbers: 0.5"),
    "unknown": (LABEL, {"voxels": lambda v: v * np.uint8(7)}, "does not have: 7"),
    "negative": (LABEL, {"voxels": lambda v: v * np.int16(-3)}, "does not have: -3"),
    "nan": (IMAGE, {"voxels": with_nan}, "1 of 15360 voxels are not finite"),
    "not HU": (IMAGE, {"voxels": lambda v: (v + 1024).astype(np.uint16)}, "not look like HU"),
    "forms": (IMAGE, {"edit": contradict}, "two forms contradict each other"),
    "forms of a label": (LABEL, {"edit": contradict}, "two forms contradict each other"),
    "4D": (LABEL, {"voxels": lambda v: v[..., None]}, "4D with one volume"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_refused_by_the_name_of_the_file(folder, check, fault, tmp_path):
    file, how, words = FAULTS[fault]
    change(folder / file, **how)
    with pytest.raises(UserError, match="1 of 2 cases of Dataset007_Body") as refused:
        check()
    assert words in str(refused.value) and (folder / file).name in str(refused.value)
    assert not (tmp_path / "preprocessed").exists()


def test_a_good_dataset_has_no_findings_and_is_read_once(folder, check, tmp_path, monkeypatch):
    assert check() == 'channels: 0 "CT" is CT in HU\n'
    report = json.loads((tmp_path / "preprocessed" / CHECKED).read_text())
    assert all(case["findings"] == [] for case in report["cases"].values())

    monkeypatch.setattr("alice_nnunet.planning.checked_dataset.check_case", None)
    check()
    change(folder / LABEL, edit=contradict)
    with pytest.raises(TypeError):
        check()


@pytest.mark.parametrize("fault", ["mirrored", "nan", "forms", "forms of a label", "4D"])
def test_what_the_user_decides_is_written_and_the_original_kept(
    folder, check, fault, tmp_path, capsys
):
    file, how, _ = FAULTS[fault]
    good = nibabel.load(folder / file)
    expected = np.asarray(good.dataobj)
    change(folder / file, **how)
    given = (folder / file).read_bytes()

    shown = check(TAKE)
    assert "WARNING: " in shown and "1 files were corrected" in shown

    corrected = nibabel.load(folder / file)
    np.testing.assert_allclose(corrected.get_sform(), good.affine, atol=1e-4)
    np.testing.assert_allclose(corrected.get_qform(), good.affine, atol=1e-4)
    voxels = np.asarray(corrected.dataobj)
    if fault == "nan":
        assert voxels[3, 4, 5] == -1024
        voxels[3, 4, 5] = expected[3, 4, 5]
    np.testing.assert_array_equal(voxels, expected)

    part, name = file.split("/")
    assert (folder / f"{part}_original" / name).read_bytes() == given
    report = json.loads((tmp_path / "preprocessed" / CHECKED).read_text())
    assert report["decisions"] == TAKE.to_dict()
    assert len(report["cases"]["case1"]["findings"]) == 1
    assert "corrected" not in check(TAKE) and check() == 'channels: 0 "CT" is CT in HU\n'


def test_the_second_channel_is_checked_too(folder, check):
    content = json.loads((folder / "dataset.json").read_text())
    content["channel_names"] = {"0": "CT", "1": "CT"}
    (folder / "dataset.json").write_text(json.dumps(content))
    for case in ("case0", "case1"):
        for name in (f"{case}_0001.nii.gz",):
            shutil.copy(folder / "imagesTr" / f"{case}_0000.nii.gz", folder / "imagesTr" / name)
    check()

    second = folder / "imagesTr" / "case1_0001.nii.gz"
    change(second, affine=nibabel.affines.from_matvec(np.eye(3), (0, 0, 9)))
    with pytest.raises(UserError, match=r"case1_0001.nii.gz: lies on another grid"):
        check()
    change(second, voxels=with_nan, affine=nibabel.affines.from_matvec(np.eye(3), (0, 0, -9)))
    with pytest.raises(UserError, match=r"case1_0001.nii.gz: 1 of 15360 voxels are not finite"):
        check()


def test_an_empty_label_is_noted_and_a_dataset_of_them_refused(folder, check):
    change(folder / LABEL, voxels=lambda v: v * np.uint8(0))
    shown = check()
    assert "NOTE: case1.nii.gz: only background" in shown and "WARNING" not in shown
    change(folder / "labelsTr/case0.nii.gz", voxels=lambda v: v * np.uint8(0))
    with pytest.raises(UserError, match="labelsTr: all 2 labels hold only background"):
        check()


def test_files_that_no_case_uses_are_named(folder, check, tmp_path):
    (folder / "imagesTs").mkdir()
    shutil.copy(folder / "imagesTr/case0_0000.nii.gz", folder / "imagesTs/test_0000.nii.gz")
    expected = {
        "imagesTr/case2_0000.nii": "convert it",
        "imagesTr/case3_0000.NII.GZ": "rename it",
        "imagesTs/scan.nii.gz": "the name must end in the channel's number",
        "imagesTs/notes.txt": "does not end in .nii.gz",
        "labelsTr/case9.nii.gz": "there is no image",
        "labelsTr/case1.nrrd": "convert it",
        "labelsTr/.case1.nii.gz": "a hidden file",
    }
    for name in expected:
        (folder / name).touch()
    (folder / "labelsTr" / "old").mkdir()

    shown = check()
    assert "passed over 8 files or folders" in shown
    report = json.loads((tmp_path / "preprocessed" / CHECKED).read_text())["passed_over"]
    assert "a folder of 0 files" in report.pop("labelsTr/old")
    assert report.keys() == expected.keys()
    for name, reason in expected.items():
        assert reason in report[name] and name in shown


def test_a_dataset_whose_files_lie_elsewhere(folder, check, tmp_path):
    """dataset.json lists them, as nnU-Net allows."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    entries = {}
    for case in ("case0", "case1"):
        image = (folder / f"imagesTr/{case}_0000.nii.gz").rename(elsewhere / f"{case}.nii.gz")
        label = (folder / f"labelsTr/{case}.nii.gz").rename(elsewhere / f"{case}_label.nii.gz")
        entries[case] = {"images": [str(image)], "label": str(label)}
    content = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps({**content, "dataset": entries}))
    (folder / "imagesTr/more_0000.nii.gz").touch()

    shown = check()
    assert 'imagesTr/more_0000.nii.gz (not in the entry "dataset" of dataset.json)' in shown
    change(elsewhere / "case1_label.nii.gz", voxels=label_in_halves)
    with pytest.raises(UserError, match=r"case1_label\.nii\.gz: values that are not whole"):
        check()


def label_in_halves(voxels):
    return voxels * 0.5


@pytest.mark.parametrize("labels", [{"whole": [1, 2], "core": [2], "ignore": 3}, {"dense": 1}])
def test_regions_and_the_ignore_label_are_values(folder, check, labels):
    """A label of 0, 1, 2 and 3 is good with regions and ignore, and has unknown values without."""
    content = json.loads((folder / "dataset.json").read_text())
    content["labels"] = {"background": 0, **labels}
    (folder / "dataset.json").write_text(json.dumps(content))
    change(folder / LABEL, voxels=lambda v: (np.arange(v.size).reshape(v.shape) % 4).astype("u1"))
    if "ignore" in labels:
        assert "channels" in check()
        return
    with pytest.raises(UserError, match=r"case1\.nii\.gz: values that .* does not have: 2, 3"):
        check()


def test_channels_that_are_called_otherwise(folder, check):
    content = json.loads((folder / "dataset.json").read_text())
    content["channel_names"] = {"0": "CTA"}
    (folder / "dataset.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match='channel 0 is called "CTA"'):
        check()
    assert "is not CT" in check(Decisions(accept=frozenset({"channel-name"})))


def test_percentiles_outside_the_window():
    statistics = {"percentile_00_5": 900.0, "percentile_99_5": 1300.0}
    with pytest.raises(UserError, match=r"Dataset007_Body: .* 900 to 1300, .*--accept not-hu"):
        check_intensities("Dataset007_Body", statistics, 0, [-125.0, 255.0], NO_DECISIONS)
    accepted = Decisions(accept=frozenset({"not-hu"}))
    check_intensities("Dataset007_Body", statistics, 0, [-125.0, 255.0], accepted)
    bone = {"percentile_00_5": 100.0, "percentile_99_5": 1300.0}
    check_intensities("Dataset007_Body", bone, 0, [-125.0, 255.0], NO_DECISIONS)
