"""alice-check: a whole dataset, labeled or not."""

import json

import nibabel
import numpy as np
import pytest

from alice_nnunet.commands.check import main
from tests.helpers.finetuning import write_dataset


def report_of(folders, name: str) -> dict:
    folder = folders / "preprocessed" / name
    assert (folder / "alice_check.png").stat().st_size > 1000
    return json.loads((folder / "alice_check.json").read_text())


def refused(capsys, *arguments: str) -> tuple[str, str]:
    with pytest.raises(SystemExit) as end:
        main(["-np", "1", *arguments])
    captured = capsys.readouterr()
    assert end.value.code == 2 and captured.err.count("\n") == 1
    return captured.out, captured.err


def test_good_datasets_have_no_findings(nnunet_folders, raw_dataset, real_ct, capsys):
    write_dataset(nnunet_folders / "raw", real_ct, cases=2)
    raw_dataset({"a": real_ct})
    for number, name, cases in (("7", "Dataset007_Body", 2), ("22", "Dataset022_Test", 1)):
        main(["-d", number, "-np", "1"])
        report = report_of(nnunet_folders, name)
        assert report["findings"] == report["passed_over"] == {} and len(report["cases"]) == cases
        assert f"{cases} cases can be used, 0 with warnings" in capsys.readouterr().out


def test_an_unlabeled_dataset(nnunet_folders, raw_dataset, real_ct, capsys):
    hu = np.asarray(real_ct.dataobj)
    folder = raw_dataset(
        {
            "a": real_ct,
            "again": nibabel.Nifti1Image(hu[..., None], real_ct.affine),
            "shifted": nibabel.Nifti1Image(hu + 1024, real_ct.affine),
            "thin": nibabel.Nifti1Image(hu[:, :, :2], real_ct.affine @ np.diag([1, 1, 0.4, 1])),
            "text": b"text",
        }
    )
    (folder / "imagesTr" / "other_0000.nrrd").touch()

    shown, error = refused(capsys, "-d", "22")

    assert "3 cases or files of 5 cases cannot be used" in error and "other_0000.nrrd" in shown
    findings = report_of(nnunet_folders, "Dataset022_Test")["findings"]
    kinds = {case: [finding["kind"] for finding in found] for case, found in findings.items()}
    assert kinds == {
        "again": ["same-content"],
        "shifted": ["not-hu"],
        "thin": ["fragment"],
        "text": ["unreadable"],
    }
    for found in findings.values():
        assert found[0]["file"] in shown

    (folder / "imagesTr" / "text_0000.nii.gz").unlink()
    main(["-d", "22", "-np", "1", "--accept", "not-hu", "fragment"])
    report = report_of(nnunet_folders, "Dataset022_Test")
    assert report["decisions"] == {"accept": ["fragment", "not-hu"]}


def test_a_labeled_dataset(nnunet_folders, real_ct, capsys):
    raw = write_dataset(nnunet_folders / "raw", real_ct, cases=3)
    label = nibabel.load(raw / "labelsTr" / "case0.nii.gz")
    voxels = np.asarray(label.dataobj) * np.uint8(7)
    nibabel.save(nibabel.Nifti1Image(voxels, label.affine), raw / "labelsTr" / "case0.nii.gz")
    (raw / "labelsTr" / "case1.nii.gz").unlink()
    (raw / "labelsTr" / "case7.nii.gz").touch()

    shown, error = refused(capsys, "-d", "7")
    assert "case0.nii.gz: values that dataset.json does not have: 7" in shown
    assert "ERROR: case1.nii.gz: there is no " in shown and "2 cases or files of 3" in error
    assert "passed over 1 files or folders: labelsTr/case7.nii.gz (there is no image)" in shown


def test_labels_of_background_alone(nnunet_folders, real_ct, capsys):
    raw = write_dataset(nnunet_folders / "raw", real_ct, cases=2)
    for case in ("case0", "case1"):
        label = nibabel.load(raw / "labelsTr" / f"{case}.nii.gz")
        empty = nibabel.Nifti1Image(np.zeros(label.shape, np.uint8), label.affine)
        nibabel.save(empty, raw / "labelsTr" / f"{case}.nii.gz")
        if case == "case0":
            main(["-d", "7", "-np", "1"])
            shown = capsys.readouterr().out
            assert "NOTE: case0.nii.gz: only background" in shown and "0 with warnings" in shown

    _, error = refused(capsys, "-d", "7")
    assert "labelsTr: all 2 labels hold only background" in error
