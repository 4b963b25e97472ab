"""Headers that say nothing, or two things at once. Good ones have no findings."""

import nibabel
import numpy as np
import pytest

from alice_nnunet.checks.findings import NO_DECISIONS, Decisions, settled
from alice_nnunet.checks.header import check_image_header

AFFINE = np.diag([-2.0, -2.0, 3.0, 1.0])
ROTATION = nibabel.eulerangles.euler2mat(0.4, -0.2, 0.1)


def image(affine=AFFINE, shape=(20, 22, 24)) -> nibabel.Nifti1Image:
    return nibabel.Nifti1Image(np.zeros(shape, np.int16), affine)


def with_forms(sform, scode, qform, qcode) -> nibabel.Nifti1Image:
    made = image()
    made.set_sform(sform, scode)
    made.set_qform(qform, qcode)
    return made


def findings(made, decisions=NO_DECISIONS):
    geometry, found = check_image_header(made, "a_0000.nii.gz", decisions)
    return geometry, settled(found, decisions)


def changed(row, column, by) -> np.ndarray:
    affine = AFFINE.copy()
    affine[row, column] += by
    return affine


@pytest.mark.parametrize(
    "made",
    [
        image(),
        image(nibabel.affines.from_matvec(ROTATION @ AFFINE[:3, :3], (5, 6, 7))),
        with_forms(AFFINE, 1, None, 0),
        with_forms(None, 0, AFFINE, 1),
        with_forms(AFFINE, 2, AFFINE, 1),
        image(shape=(20, 22, 24, 1)),
        image(np.diag([0.06, 0.06, 0.06, 1])),
        nibabel.Nifti2Image(np.zeros((20, 22, 24), np.float32), AFFINE),
    ],
)
def test_good_headers(made):
    made.header.set_xyzt_units("mm")
    geometry, found = findings(made)
    assert found == [] and geometry.shape == (20, 22, 24)
    np.testing.assert_allclose(geometry.affine, made.affine)


@pytest.mark.parametrize(
    "qform",
    [
        np.diag([-1.0, 1.0, 1.0, 1.0]) @ AFFINE,  # mirrored
        changed(0, 3, 5.0),  # elsewhere
        nibabel.affines.from_matvec(ROTATION @ AFFINE[:3, :3]),  # turned
    ],
)
def test_forms_that_contradict_each_other(qform):
    made = with_forms(AFFINE, 1, qform, 1)
    _, (finding,) = findings(made)
    assert finding.is_error and finding.kind == "two-orientations"
    assert "--take sform or --take qform" in finding.remedy

    for form, matrix in (("sform", AFFINE), ("qform", qform)):
        geometry, (finding,) = findings(made, Decisions(take=frozenset({form})))
        assert not finding.is_error and f"The {form} is taken" in finding.text
        np.testing.assert_allclose(geometry.affine, matrix, atol=1e-5)


def test_no_orientation():
    made = with_forms(AFFINE, 0, AFFINE, 0)
    _, (finding,) = findings(made)
    assert finding.is_error and "the header gives no orientation" in finding.text

    geometry, (finding,) = findings(made, Decisions(take=frozenset({"as-stored"})))
    assert not finding.is_error and geometry.orientation == "RAS"
    assert geometry.spacing.tolist() == [2, 2, 3]


@pytest.mark.parametrize(
    "affine, kind",
    [
        (np.diag([0.002, 0.002, 0.003, 1]), "spacing"),
        (np.diag([2, 2, 60.0, 1]), "spacing"),
        (changed(0, 2, 0.7), "sheared"),
        (changed(2, 1, 0.3), "sheared"),
    ],
)
def test_axes_that_no_scanner_makes(affine, kind):
    made = with_forms(affine, 1, None, 0)
    made.header["pixdim"][1:4] = nibabel.affines.voxel_sizes(affine)
    _, (finding,) = findings(made)
    assert finding.is_error and finding.kind == kind and f"--accept {kind}" in finding.remedy

    _, (finding,) = findings(made, Decisions(accept=frozenset({kind})))
    assert not finding.is_error and f"(--accept {kind})" in finding.text


@pytest.mark.parametrize("unit, name", [("meter", "metres"), ("micron", "micrometres")])
def test_units(unit, name):
    made = image()
    made.header.set_xyzt_units(unit, "sec")
    _, (finding,) = findings(made)
    assert finding.is_error and finding.kind == "units" and name in finding.found


def test_pixdim_against_affine():
    made = image()
    made.header["pixdim"][3] = 5
    geometry, (finding,) = findings(made)
    assert geometry is None and "two voxel sizes" in finding.found


@pytest.mark.parametrize(
    "made",
    [
        image(shape=(20, 22, 24, 3)),
        image(shape=(1, 22, 24)),
        nibabel.Nifti1Image(np.zeros((9, 9, 9), [("R", "u1"), ("G", "u1"), ("B", "u1")]), AFFINE),
        nibabel.Nifti1Image(np.zeros((9, 9, 9), np.complex64), AFFINE),
    ],
)
def test_no_volume_of_numbers(made):
    geometry, (finding,) = findings(made)
    assert geometry is None and finding.is_error and finding.kind == "shape"
