"""Scans in prediction: checked before they are segmented, and outputs with both header forms."""

import pickle

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from alice_nnunet.datasets.checked_reader import TRAINING, check_what_is_read
from tests.helpers.finetuning import stock_plans, write_case


def reader_of(**changes):
    """The reader that a process of nnU-Net's predictor makes from plans."""
    plans = PlansManager(stock_plans(**{"image_reader_writer": "NibabelIOWithReorient", **changes}))
    check_what_is_read(plans)
    return pickle.loads(pickle.dumps(plans)).image_reader_writer_class()


@pytest.fixture
def hu(real_ct) -> np.ndarray:
    return np.asarray(real_ct.dataobj)


def test_the_same_arrays_as_nnunets_and_both_forms_in_the_output(tmp_path, hu):
    path = tmp_path / "a_0000.nii.gz"
    write_case(path, hu)
    image = nibabel.load(path)
    image.set_qform(image.affine, 1)
    image.set_sform(image.affine, 1)
    nibabel.save(image, path)

    plans = PlansManager(stock_plans(image_reader_writer="NibabelIOWithReorient"))
    expected, _ = plans.image_reader_writer_class().read_images([str(path)])
    reader = reader_of()
    found, properties = reader.read_images([str(path)])
    np.testing.assert_array_equal(found, expected)

    labels = (found[0] > 0).astype(np.uint8)
    reader.write_seg(labels, str(tmp_path / "a.nii.gz"), properties)
    written = nibabel.load(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(np.asarray(written.dataobj), hu > 0)
    assert written.header["qform_code"] == written.header["sform_code"] == 1
    by_itk = [sitk.ReadImage(str(tmp_path / name)) for name in ("a.nii.gz", "a_0000.nii.gz")]
    for name in ("GetOrigin", "GetSpacing", "GetDirection"):
        np.testing.assert_allclose(*[getattr(one, name)() for one in by_itk], atol=1e-4)


@pytest.mark.parametrize("fault", ["nan", "not HU", "forms", "no orientation", "text"])
def test_bad_scans_are_refused_by_name(tmp_path, hu, fault):
    path = tmp_path / "a_0000.nii.gz"
    voxels = hu.astype(np.float32)
    if fault == "nan":
        voxels[0, 0, 0] = np.nan
    write_case(path, voxels + 1024 if fault == "not HU" else voxels)
    image = nibabel.load(path)
    if fault == "forms":
        image.set_qform(np.diag([-1.0, 1, 1, 1]) @ image.affine, 1)
    if fault == "no orientation":
        image.set_sform(None, 0)
    nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj), None, image.header), path)
    if fault == "text":
        path.write_bytes(b"text")

    with pytest.raises(ValueError, match=r"a_0000\.nii\.gz: "):
        reader_of().read_images([str(path)])


def test_what_the_environment_decides(tmp_path, hu, monkeypatch):
    voxels = hu.astype(np.float32)
    voxels[0, 0, 0] = np.nan
    write_case(tmp_path / "a_0000.nii.gz", voxels)
    monkeypatch.setenv("alice_fill_nan", "1")
    image, _ = reader_of().read_images([str(tmp_path / "a_0000.nii.gz")])
    assert np.isfinite(image).all() and image.min() == -1024


def test_nnunets_own_plans_refuse_another_orientation(tmp_path, hu):
    plans = {"image_reader_writer": "SimpleITKIO", "alice": {"input": {"flip_axes": [1, 2]}}}
    for codes in ("LPS", "RAS", "PIR"):
        write_case(tmp_path / f"{codes}_0000.nii.gz", hu, codes)
    reader_of(**plans).read_images([str(tmp_path / "LPS_0000.nii.gz")])
    for codes in ("RAS", "PIR"):
        with pytest.raises(ValueError, match=f"{codes}_0000.nii.gz: stored as {codes}.*LPS"):
            reader_of(**plans).read_images([str(tmp_path / f"{codes}_0000.nii.gz")])


def test_the_plans_of_a_training_stay_as_they_are():
    plans = PlansManager(stock_plans())
    setattr(plans, TRAINING, True)
    check_what_is_read(plans)
    assert type(plans) is PlansManager
