import json

import pytest

from alice_nnunet.datasets.raw_dataset import open_raw_dataset, passed_over_text
from alice_nnunet.errors import UserError


@pytest.fixture
def folder(raw_dataset):
    return raw_dataset({"a": b"", "b": b""})


def test_cases_of_both_folders_with_their_channels(raw_dataset):
    folder = raw_dataset({"b": [b"", b""], "a_0001": [b"", b""]}, ("CT", "MR"))
    (folder / "imagesTs").mkdir()
    for channel in (0, 1):
        (folder / "imagesTs" / f"c_000{channel}.nii.gz").touch()
    (folder / "imagesTr" / "._b_0000.nii.gz").touch()  # macOS
    (folder / "imagesTr" / "notes.txt").touch()

    raw = open_raw_dataset(22, test_images=True)

    assert raw.name == "Dataset022_Test" and raw.rejected == {}
    assert raw.passed_over == {
        "imagesTr/._b_0000.nii.gz": "a hidden file",
        "imagesTr/notes.txt": "does not end in .nii.gz",
    }
    assert {case: [file.name for file in files] for case, files in raw.cases.items()} == {
        case: [f"{case}_0000.nii.gz", f"{case}_0001.nii.gz"] for case in ("a_0001", "b", "c")
    }
    assert list(open_raw_dataset(22).cases) == ["a_0001", "b"]
    assert open_raw_dataset("22") == open_raw_dataset("Dataset022_Test")


def test_files_that_fit_no_case_are_rejected_by_name(raw_dataset):
    folder = raw_dataset({"a": [b"", b""], "b": [b""], "c": [b"", b"", b""]}, ("CT", "MR"))
    (folder / "imagesTr" / "scan.nii.gz").touch()

    raw = open_raw_dataset(22)

    assert list(raw.cases) == ["a"]
    assert raw.rejected["b"] == "b_0001.nii.gz is missing"
    assert "no channel for c_0002.nii.gz" in raw.rejected["c"]
    assert "CASE_0000.nii.gz" in raw.rejected["scan.nii.gz"]


def test_labels_and_number_of_cases_are_not_needed(folder):
    assert set(json.loads((folder / "dataset.json").read_text())) == {
        "channel_names",
        "file_ending",
    }
    assert sorted(open_raw_dataset(22).cases) == ["a", "b"]


@pytest.mark.parametrize(
    "content, message",
    [
        ("{", "not valid JSON"),
        ("[]", "JSON object"),
        ('{"file_ending": ".nii.gz"}', '"channel_names" must be like'),
        ('{"channel_names": {}, "file_ending": ".nii.gz"}', '"channel_names" must be like'),
        (
            '{"channel_names": {"0": "CT"}}',
            '"file_ending" must be .nii.gz or .nii or .nrrd or .* got null',
        ),
        ('{"channel_names": {"0": "CT"}, "file_ending": ".png"}', "Convert the images to NIfTI"),
        ('{"channel_names": {"0": "CT"}, "file_ending": ".mha"}', r"no file ends in .mha .*a_0000"),
        ('{"modality": {"0": "CT"}, "training": []}', "nnUNetv2_convert_old_nnUNet_dataset"),
        ('{"channel_names": {"0": "CT"}, "file_ending": ".nii"}', "no file ends in .nii "),
        (
            '{"channel_names": {"0": "CT"}, "file_ending": ".nii.gz", "labels": {"1": "liver"}}',
            "version 1 had the number first",
        ),
        (
            '{"channel_names": {"0": "CT"}, "file_ending": ".nii.gz", "labels": {"liver": 0.5}}',
            '"labels" must be like',
        ),
    ],
)
def test_wrong_dataset_json(folder, content, message):
    (folder / "dataset.json").write_text(content)
    with pytest.raises(UserError, match=message):
        open_raw_dataset(22)


def test_missing_dataset_json(folder):
    (folder / "dataset.json").unlink()
    with pytest.raises(
        UserError, match=r"dataset.json is missing. It must contain at least .*channel_names"
    ):
        open_raw_dataset(22)


def test_missing_folder_of_images(folder):
    (folder / "imagesTr").rename(folder / "images")
    with pytest.raises(UserError, match="no folder imagesTr"):
        open_raw_dataset(22)


def test_one_name_in_both_folders(folder):
    (folder / "imagesTs").mkdir()
    (folder / "imagesTs" / "a_0000.nii.gz").touch()
    with pytest.raises(UserError, match=r"case a is in .*imagesTr and in .*imagesTs"):
        open_raw_dataset(22, test_images=True)


@pytest.mark.parametrize(
    "dataset, message",
    [
        (23, "no dataset with the ID 23 in nnUNet_raw="),
        ("Dataset023_Other", "no dataset Dataset023_Other in nnUNet_raw="),
        ("liver", "an ID such as 22 or a name"),
    ],
)
def test_unknown_dataset(folder, dataset, message):
    with pytest.raises(UserError, match=message):
        open_raw_dataset(dataset)


def test_two_datasets_of_one_id(folder):
    (folder.parent / "Dataset022_Other").mkdir()
    with pytest.raises(UserError, match="more than one dataset with the ID 22"):
        open_raw_dataset(22)


@pytest.mark.parametrize("variable", ["nnUNet_raw", "nnUNet_preprocessed"])
def test_unset_variable(folder, monkeypatch, variable):
    monkeypatch.delenv(variable)
    with pytest.raises(UserError, match=f"{variable} is not set"):
        open_raw_dataset(22)


def test_what_is_passed_over_is_named_with_the_reason(folder):
    images = folder / "imagesTr"
    for name in ("c_0000.NII.GZ", "d_0000.nii", "e_0000.nrrd", ".hidden_0000.nii.gz"):
        (images / name).touch()
    (images / "more").mkdir()
    (images / "more" / "f_0000.nii.gz").touch()

    raw = open_raw_dataset(22)

    assert list(raw.cases) == ["a", "b"]
    expected = {
        "c_0000.NII.GZ": "rename it",
        "d_0000.nii": "convert it",
        "e_0000.nrrd": "convert it",
        ".hidden_0000.nii.gz": "a hidden file",
        "more": "a folder of 1 files",
    }
    assert raw.passed_over.keys() == {f"imagesTr/{name}" for name in expected}
    for name, words in expected.items():
        assert words in raw.passed_over[f"imagesTr/{name}"]
    assert passed_over_text(raw.passed_over).startswith("passed over 5 files or folders: ")


def test_cases_that_dataset_json_lists_may_lie_elsewhere(folder, tmp_path):
    elsewhere = tmp_path / "scans" / "person.nii.gz"
    elsewhere.parent.mkdir()
    elsewhere.touch()
    listed = {
        "x": {"images": [str(elsewhere)], "label": "none"},
        "y": {"images": ["imagesTr/a_0000.nii.gz"]},
        "gone": {"images": ["imagesTr/gone_0000.nii.gz"]},
        "two": {"images": ["a", "b"]},
    }
    content = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps({**content, "dataset": listed}))

    raw = open_raw_dataset(22)

    assert raw.cases == {"x": [elsewhere], "y": [folder / "imagesTr" / "a_0000.nii.gz"]}
    assert "gone_0000.nii.gz" in raw.rejected["gone"] and "lists 2 images" in raw.rejected["two"]
    assert raw.passed_over == {
        "imagesTr/b_0000.nii.gz": 'not in the entry "dataset" of dataset.json'
    }

    (folder / "dataset.json").write_text(json.dumps({**content, "dataset": ["a"]}))
    with pytest.raises(UserError, match='"dataset" must be like'):
        open_raw_dataset(22)
