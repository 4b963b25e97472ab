"""What alice-preprocess does with inputs that leave a choice, and what it writes about them."""

import json

import nibabel
import numpy as np
import pytest

from alice_nnunet.data.volumes import open_volume
from alice_nnunet.pretrain.commands.preprocess import main
from alice_nnunet.pretrain.datasets.preprocessed import preprocessed_volumes

COARSE = ["-np", "1", "-spacing", "9", "9", "9", "-patch", "16", "16", "16"]


@pytest.fixture
def preprocess(nnunet_folders, capsys):
    """A function that runs the command on dataset 22 and returns report and screen."""

    def run(*arguments: str) -> tuple[dict, str]:
        main(["-d", "22", *COARSE, *arguments])
        folder = nnunet_folders / "preprocessed" / "Dataset022_Test"
        report = json.loads((folder / "AlicePretrainPlans_report.json").read_text())
        return report, capsys.readouterr().out

    return run


@pytest.fixture
def cases(real_ct) -> dict[str, nibabel.Nifti1Image]:
    hu = np.asarray(real_ct.dataobj)
    affine = real_ct.affine

    def image(voxels, matrix=affine):
        made = nibabel.Nifti1Image(voxels, matrix)
        made.header.set_xyzt_units("mm")
        return made

    mirrored = image(hu)
    mirrored.set_qform(np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine, 1)
    unoriented = image(hu)
    unoriented.set_sform(affine, 0)
    unoriented.set_qform(affine, 0)
    outside = hu.astype(np.float32)
    outside[:4] = np.nan
    piece = np.full(hu.shape, -1000, np.int16)
    middle = tuple(slice(n // 2 - 3, n // 2 + 4) for n in hu.shape)  # 21 mm
    piece[middle] = hu[middle]

    return {
        "base": image(hu),
        "again": image(hu),
        "four_d": image((hu + np.int16(1))[..., None]),
        "mirrored": mirrored,
        "unoriented": unoriented,
        "nan": image(outside),
        "plus1024": image((hu + 1024).astype(np.uint16)),
        "zero_to_one": image(np.clip((hu + 160) / 400, 0, 1).astype(np.float32)),
        "slices": image(hu[:, :, :2], affine @ np.diag([1, 1, 0.4, 1])),
        "cube": image(hu[20:25, 20:25, 20:25], affine @ np.diag([0.4, 0.4, 0.4, 1])),
        "piece": image(piece, np.diag([-3.0, -3.0, 3.0, 1.0])),
    }


def test_each_fault_is_named_and_good_scans_have_no_warning(raw_dataset, cases, preprocess):
    folder = raw_dataset(cases)
    (folder / "imagesTr" / "other_0000.nrrd").touch()

    report, shown = preprocess()

    assert report["ok"] == ["again", "base", "four_d"]
    words = {
        "mirrored": "two forms contradict each other",
        "unoriented": "the header gives no orientation",
        "nan": "voxels are not finite",
        "plus1024": "does not look like HU",
        "zero_to_one": "does not look like HU",
        "slices": "a fragment",
        "cube": "a fragment: the volume is",
        "piece": "a fragment: the body is",
    }
    assert report["failed"].keys() == words.keys()
    for case, text in words.items():
        assert text in report["failed"][case] and report["failed"][case] in shown

    assert report["warnings"] == {"base": ["the same voxels as again: remove one of the two"]}
    assert report["passed_over"].keys() == {"imagesTr/other_0000.nrrd"}
    assert "other_0000.nrrd" in shown and '0 "CT" is CT in HU' in shown
    assert report["decisions"] == {}


def test_scans_that_were_added_later_are_said(raw_dataset, cases, preprocess, capsys):
    """A scan of another ending is no such scan: alice-preprocess would not add it."""
    folder = raw_dataset({"base": cases["base"]})
    preprocess()
    (folder / "imagesTr" / "other_0000.nrrd").touch()
    (folder / "imagesTr" / "._base_0000.nii.gz").touch()
    preprocessed_volumes("Dataset022_Test", 1, "tiny", (16, 16, 16))
    assert "added after" not in capsys.readouterr().out

    nibabel.save(cases["four_d"], folder / "imagesTr" / "later_0000.nii.gz")
    preprocessed_volumes("Dataset022_Test", 1, "tiny", (16, 16, 16))
    shown = capsys.readouterr().out
    assert "1 scans in imagesTr were added after preprocessing and are not used (later)" in shown

    report, shown = preprocess()
    assert report["ok"] == ["base", "later"] and "1 of 2 cases are already" in shown
    assert "added after" not in shown


def test_decisions_of_the_user_are_followed_and_recorded(
    raw_dataset, cases, preprocess, nnunet_folders
):
    raw_dataset({name: cases[name] for name in ("mirrored", "unoriented", "nan", "slices")})
    options = ["--take", "qform", "as-stored", "--fill-nan", "--accept", "fragment", "not-hu"]
    report, _ = preprocess(*options)

    assert report["failed"] == {}
    assert report["decisions"] == {
        "take": ["as-stored", "qform"],
        "fill_nan": True,
        "accept": ["fragment", "not-hu"],
    }
    words = {
        "mirrored": "The qform is taken",
        "unoriented": "--take as-stored",
        "nan": "filled with -1024",
        "slices": "--accept fragment",
    }
    for case, text in words.items():
        assert text in report["warnings"][case][0]
    same = "the same voxels as mirrored"  # taken as qform and as stored: both as RAS
    assert same in report["warnings"]["unoriented"][1] and len(report["warnings"]["nan"]) == 1

    volumes = nnunet_folders / "preprocessed/Dataset022_Test/AlicePretrainPlans_3d_fullres"
    image = open_volume(volumes, "nan").image[0]
    left = open_volume(volumes, "mirrored").image[0]
    assert np.isfinite(image).all() and image.shape == left.shape

    again, shown = preprocess()
    assert again["warnings"] == report["warnings"] and "4 of 4 cases are already" in shown


def test_a_channel_with_another_name_than_ct_is_asked_about(raw_dataset, real_ct, capsys):
    raw_dataset({"a": real_ct}, ("CT portal venous",))
    with pytest.raises(SystemExit) as end:
        main(["-d", "22", *COARSE])
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert 'channel 0 is called "CT portal venous"' in error and "--accept channel-name" in error

    main(["-d", "22", *COARSE, "--accept", "channel-name"])
    assert '0 "CT portal venous" is not CT' in capsys.readouterr().out
