"""Labels that lie elsewhere than their image, or hold other values than dataset.json."""

import nibabel
import numpy as np
import pytest

from alice_nnunet.checks.findings import NO_DECISIONS, Decisions
from alice_nnunet.checks.header import Geometry
from alice_nnunet.checks.labels import check_label_geometry, check_label_values, label_values

IMAGE = Geometry((20, 22, 24), np.diag([-3.0, -3.0, 5.0, 1.0]))
TAKE = Decisions(take=frozenset({"image-geometry"}))


def check(geometry, decisions=NO_DECISIONS):
    return check_label_geometry(geometry, IMAGE, "a.nii.gz", "a_0000.nii.gz", decisions)


def test_a_label_on_its_image():
    assert check(IMAGE) == []
    rounded = IMAGE.affine.copy()
    rounded[0, 3] += 1e-3
    assert check(Geometry(IMAGE.shape, rounded)) == []


@pytest.mark.parametrize(
    "change",
    [
        np.diag([-1.0, 1.0, 1.0, 1.0]),  # left for right
        np.diag([1.0, 1.0, -1.0, 1.0]),  # head for feet
        np.diag([1.0, 1.0, 0.5, 1.0]),  # another spacing
        nibabel.affines.from_matvec(np.eye(3), (5, 0, 0)),  # elsewhere
    ],
)
def test_a_label_elsewhere(change):
    geometry = Geometry(IMAGE.shape, change @ IMAGE.affine)
    (finding,) = check(geometry)
    assert finding.is_error and finding.file == "a.nii.gz" and "a_0000.nii.gz" in finding.found
    assert "--take image-geometry" in finding.remedy
    (finding,) = check(geometry, TAKE)
    assert not finding.is_error


def test_another_shape_cannot_be_taken():
    (finding,) = check(Geometry((20, 22, 23), IMAGE.affine), TAKE)
    assert finding.is_error
    assert "20 x 22 x 23" in finding.found and "20 x 22 x 24" in finding.found


@pytest.mark.parametrize("codes", ["RAS", "PIR"])
def test_another_orientation_of_the_same_place_is_a_warning(codes):
    image = nibabel.Nifti1Image(np.zeros(IMAGE.shape, np.uint8), IMAGE.affine)
    turned = image.as_reoriented(
        nibabel.orientations.ornt_transform(
            nibabel.io_orientation(image.affine), nibabel.orientations.axcodes2ornt(codes)
        )
    )
    (finding,) = check(Geometry(turned.shape, turned.affine))
    assert not finding.is_error and codes in finding.found and "LPS" in finding.found


def test_values_that_dataset_json_has():
    labels = {"background": 0, "body": [1, 2], "dense": [2], "ignore": 3}
    assert label_values({"labels": labels}) == {0, 1, 2, 3}


@pytest.mark.parametrize(
    "values, words",
    [
        ([0, 1, 7], "does not have: 7"),
        ([0, 1, -3], "does not have: -3"),
        ([0.0, 0.5, 1.0], "not whole numbers: 0.5"),
        ([0.0, np.nan, 1.0], "not whole numbers: nan"),
    ],
)
def test_values_that_are_no_labels(values, words):
    label = np.array(values * 8).reshape(2, 3, 4)
    (finding,) = check_label_values(label, {0, 1, 2}, "a.nii.gz")
    assert finding.is_error and words in finding.found and "0, 1, 2" in finding.expected


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float64])
def test_good_values(dtype):
    label = np.array([0, 1, 2, 1], dtype).reshape(1, 2, 2)
    assert check_label_values(label, {0, 1, 2, 3}, "a.nii.gz") == []
