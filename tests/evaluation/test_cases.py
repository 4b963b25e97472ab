import json

import pytest

from alice_nnunet.errors import UserError
from alice_nnunet.evaluation.cases import find_dataset_json, find_ending, pair_cases


@pytest.fixture
def folders(tmp_path):
    """PRED and GT with the files named; GT is the labelsTr of a dataset."""

    def make(predicted: str, reference: str):
        made = tmp_path / "predicted", tmp_path / "dataset" / "labelsTr"
        for folder, names in zip(made, (predicted, reference)):
            folder.mkdir(parents=True)
            for name in names.split():
                (folder / name).touch()
        return made

    return make


def test_the_same_names_are_the_cases(folders):
    predicted, reference = folders(
        "a.nii.gz b.1.nii.gz summary.json a.npz .c.nii.gz", "a.nii.gz b.1.nii.gz ._a.nii.gz"
    )
    cases = pair_cases(predicted, reference, ".nii.gz")
    assert cases.files == {
        case: (predicted / f"{case}.nii.gz", reference / f"{case}.nii.gz") for case in ("a", "b.1")
    }
    assert cases.left_out == ()


def test_missing_and_extra_cases(folders):
    predicted, reference = folders("a.nii.gz x.nii.gz", "a.nii.gz b.nii.gz c.nii.gz")
    with pytest.raises(
        UserError,
        match=r"2 of 3 references have no prediction in .*predicted: b, c; "
        r"1 predictions have no reference in .*: x\. .* add --chill",
    ):
        pair_cases(predicted, reference, ".nii.gz")
    cases = pair_cases(predicted, reference, ".nii.gz", chill=True)
    assert list(cases.files) == ["a"] and cases.left_out == ("b", "c", "x")


def test_nothing_in_common(folders):
    predicted, reference = folders("a_0000.nii.gz a.nrrd", "a.nii.gz")
    with pytest.raises(
        UserError,
        match=r"no prediction for any of the 1 references .* like a\.nii\.gz; "
        r"it has a\.nrrd, a_0000\.nii\.gz",
    ):
        pair_cases(predicted, reference, ".nii.gz", chill=True)
    with pytest.raises(UserError, match=r"has no references: no file ends in \.mha"):
        pair_cases(predicted, reference, ".mha")
    with pytest.raises(UserError, match="nowhere is not a readable folder"):
        pair_cases(predicted / "nowhere", reference, ".nii.gz")


def test_the_ending(folders):
    predicted, reference = folders("", "a.nii.gz notes.txt")
    assert find_ending(reference, None) == ".nii.gz"
    (reference / "b.nrrd").touch()
    with pytest.raises(UserError, match=r"files that end in \.nii\.gz and in \.nrrd"):
        find_ending(reference, None)
    with pytest.raises(UserError, match="no file that ends in"):
        find_ending(predicted, None)
    dataset_json = reference / "dataset.json"
    dataset_json.write_text(json.dumps({"file_ending": ".nrrd"}))
    assert find_ending(reference, dataset_json) == ".nrrd"
    dataset_json.write_text("[]")
    with pytest.raises(UserError, match='"file_ending" must be like'):
        find_ending(reference, dataset_json)


def test_dataset_json_is_found_in_gt_beside_it_or_in_pred(folders):
    predicted, reference = folders("dataset.json", "")
    assert find_dataset_json(predicted, reference) == predicted / "dataset.json"
    for place in (reference.parent, reference):
        (place / "dataset.json").touch()
        assert find_dataset_json(predicted, reference).samefile(place / "dataset.json")
    assert find_dataset_json(predicted / "no", reference.parent.parent / "no") is None
