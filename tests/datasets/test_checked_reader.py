"""Scans in prediction: checked before they are segmented, and outputs with both header forms."""

import pickle

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from nibabel.orientations import axcodes2ornt, ornt_transform
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


@pytest.mark.parametrize(
    "fault, remedy",
    [
        ("nan", "alice_fill_nan=1 (environment variable)"),
        ("not HU", "alice_accept=not-hu (environment variable)"),
        ("forms", "alice_take=sform or alice_take=qform (environment variable)"),
        ("no orientation", "alice_take=as-stored (environment variable)"),
        ("text", "Copy the file again"),
    ],
)
def test_bad_scans_are_refused_by_name(tmp_path, hu, fault, remedy):
    """The commands of nnU-Net know none of our options: the remedies are variables."""
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

    with pytest.raises(ValueError, match=r"a_0000\.nii\.gz: ") as refused:
        reader_of().read_images([str(path)])
    assert str(refused.value).endswith(remedy) and "--" not in str(refused.value)


def test_what_the_environment_decides(tmp_path, hu, monkeypatch):
    voxels = hu.astype(np.float32)
    voxels[0, 0, 0] = np.nan
    write_case(tmp_path / "a_0000.nii.gz", voxels)
    monkeypatch.setenv("alice_fill_nan", "1")
    image, _ = reader_of().read_images([str(tmp_path / "a_0000.nii.gz")])
    assert np.isfinite(image).all() and image.min() == -1024


def tilted(image: nibabel.Nifti1Image, codes: str) -> nibabel.Nifti1Image:
    """The image, tilted by some degrees and with spacings that floats round, stored along codes."""
    rotation = nibabel.eulerangles.euler2mat(0.06, -0.03, 0.04)
    matrix = rotation @ np.diag([-0.7421875, -0.7421875, 2.5])
    affine = nibabel.affines.from_matvec(matrix, (101.3, 99.7, -312.25))
    lps = nibabel.Nifti1Image(np.asarray(image.dataobj), affine)
    turn = ornt_transform(axcodes2ornt("LPS"), axcodes2ornt(codes))
    stored = lps.as_reoriented(turn)
    stored.set_sform(stored.affine, 1)
    stored.set_qform(stored.affine, 1)
    return stored


@pytest.mark.parametrize("reader", ["SimpleITKIO", "NibabelIO", "NibabelIOWithReorient"])
@pytest.mark.parametrize("codes", ["RAS", "PIR", "SAL", "LAS"])
def test_a_scan_is_the_same_in_any_orientation(tmp_path, real_ct, reader, codes):
    """The network sees the same voxels and spacing, and each output lies on its scan."""
    for name in ("LPS", codes):
        nibabel.save(tilted(real_ct, name), tmp_path / f"{name}_0000.nii.gz")
    plans = {"image_reader_writer": reader, "alice": {"input": {"flip_axes": [1, 2]}}}

    expected, properties = reader_of(**plans).read_images([str(tmp_path / "LPS_0000.nii.gz")])
    image, turned = reader_of(**plans).read_images([str(tmp_path / f"{codes}_0000.nii.gz")])
    np.testing.assert_array_equal(image, expected)
    np.testing.assert_array_equal(turned["spacing"], properties["spacing"])

    labels = (image[0] > 0).astype(np.uint8)
    reader_of(**plans).write_seg(labels, str(tmp_path / "out.nii.gz"), turned)
    scan = nibabel.load(tmp_path / f"{codes}_0000.nii.gz")
    written = nibabel.load(tmp_path / "out.nii.gz")
    np.testing.assert_array_equal(np.asarray(written.dataobj), np.asarray(scan.dataobj) > 0)
    for form in ("get_sform", "get_qform"):
        np.testing.assert_allclose(getattr(written, form)(), scan.affine, atol=1e-4)
    by_itk = [sitk.ReadImage(str(tmp_path / n)) for n in ("out.nii.gz", f"{codes}_0000.nii.gz")]
    assert all(image.GetDirection() == pytest.approx(by_itk[0].GetDirection()) for image in by_itk)
    assert not list(tmp_path.glob(".alice_*"))


def test_files_of_other_formats_are_checked_and_turned(tmp_path, real_ct):
    nibabel.save(tilted(real_ct, "LPS"), tmp_path / "a_0000.nii.gz")
    lps = sitk.ReadImage(str(tmp_path / "a_0000.nii.gz"))
    sitk.WriteImage(lps, str(tmp_path / "a_0000.nrrd"))
    sitk.WriteImage(sitk.DICOMOrient(lps, "RSA"), str(tmp_path / "b_0000.nrrd"))
    sitk.WriteImage(lps + 1024, str(tmp_path / "c_0000.nrrd"))
    plans = {"image_reader_writer": "SimpleITKIO", "alice": {"input": {"flip_axes": [1, 2]}}}

    reader = reader_of(**plans)
    expected, _ = reader.read_images([str(tmp_path / "a_0000.nrrd")])
    image, turned = reader.read_images([str(tmp_path / "b_0000.nrrd")])
    np.testing.assert_array_equal(image, expected)
    reader.write_seg((image[0] > 0).astype(np.uint8), str(tmp_path / "b.nrrd"), turned)
    scan, written = (sitk.ReadImage(str(tmp_path / name)) for name in ("b_0000.nrrd", "b.nrrd"))
    np.testing.assert_array_equal(*[sitk.GetArrayFromImage(i) > 0 for i in (scan, written)])
    assert written.GetDirection() == pytest.approx(scan.GetDirection(), abs=1e-6)
    assert written.GetOrigin() == pytest.approx(scan.GetOrigin(), abs=1e-4)

    with pytest.raises(ValueError, match=r"c_0000\.nrrd: CT that does not look like HU"):
        reader.read_images([str(tmp_path / "c_0000.nrrd")])


def test_the_second_channel_is_checked_too(tmp_path, hu):
    """A NaN in the second of two CT channels, and a second channel along other axes."""
    scheme = {"3d_fullres": {"normalization_schemes": 2 * ["CTNormalization"]}}
    voxels = hu.astype(np.float32)
    files = [tmp_path / "a_0000.nii.gz", tmp_path / "a_0001.nii.gz"]
    write_case(files[0], voxels)
    write_case(files[1], voxels, "RAS")
    block = {"input": {"flip_axes": [1, 2]}}
    plans = {"image_reader_writer": "SimpleITKIO", "alice": block, "configurations": scheme}
    image, _ = reader_of(**plans).read_images([str(file) for file in files])
    np.testing.assert_array_equal(image[0], image[1])

    voxels[3, 4, 5] = np.nan
    write_case(files[1], voxels)
    with pytest.raises(ValueError, match=r"a_0001\.nii\.gz: 1 of .* not finite"):
        reader_of(**plans).read_images([str(file) for file in files])


def test_four_axes_with_one_volume_are_read_and_with_two_refused(tmp_path, hu):
    for name, voxels in (("a", hu), ("b", hu[..., None]), ("c", np.stack([hu, hu], -1))):
        image = nibabel.Nifti1Image(voxels, np.diag([-3.0, -3.0, 3.0, 1.0]))
        nibabel.save(image, tmp_path / f"{name}_0000.nii.gz")
    plans = {"image_reader_writer": "SimpleITKIO", "alice": {"input": {"flip_axes": [1, 2]}}}

    reader = reader_of(**plans)
    expected, _ = reader.read_images([str(tmp_path / "a_0000.nii.gz")])
    image, properties = reader.read_images([str(tmp_path / "b_0000.nii.gz")])
    np.testing.assert_array_equal(image, expected)
    reader.write_seg((image[0] > 0).astype(np.uint8), str(tmp_path / "b.nii.gz"), properties)
    assert nibabel.load(tmp_path / "b.nii.gz").shape == hu.shape
    with pytest.raises(ValueError, match=r"c_0000\.nii\.gz: not a 3D volume"):
        reader.read_images([str(tmp_path / "c_0000.nii.gz")])


def test_what_is_passed_over_and_an_empty_segmentation_are_said(tmp_path, hu, capsys):
    for name in ("a", "b"):
        write_case(tmp_path / f"{name}_0000.nii.gz", hu)
    for name in ("c_0000.nii", "d.nii.gz", "e_0000.NII.GZ", "._a_0000.nii.gz"):
        (tmp_path / name).touch()

    reader = reader_of()
    reader.read_images([str(tmp_path / "b_0000.nii.gz")])
    assert capsys.readouterr().out == ""
    image, properties = reader.read_images([str(tmp_path / "a_0000.nii.gz")])
    shown = capsys.readouterr().out
    assert "passed over 4 files or folders" in shown and "c_0000.nii (" in shown
    assert "d.nii.gz (the name must end in the channel's number)" in shown

    reader.write_seg(np.zeros(image.shape[1:], np.uint8), str(tmp_path / "a.nii.gz"), properties)
    assert capsys.readouterr().out == "WARNING: a.nii.gz: nothing was segmented\n"


def test_unknown_words_in_the_environment_are_refused(tmp_path, hu, monkeypatch):
    write_case(tmp_path / "a_0000.nii.gz", hu)
    monkeypatch.setenv("alice_take", "sfrom")
    with pytest.raises(ValueError, match="alice_take=sfrom: it must be some of sform, qform"):
        reader_of().read_images([str(tmp_path / "a_0000.nii.gz")])


def test_the_plans_of_a_training_stay_as_they_are():
    plans = PlansManager(stock_plans())
    setattr(plans, TRAINING, True)
    check_what_is_read(plans)
    assert type(plans) is PlansManager
