import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from alice_nnunet.errors import UserError
from alice_nnunet.evaluation.label_image import (
    check_same_grid,
    read_grid,
    read_labels,
    turned_labels,
)


def image(array, spacing=(0.8, 1.5, 4.0), origin=(-10.0, 20.0, 5.0)) -> sitk.Image:
    made = sitk.GetImageFromArray(array)
    made.SetSpacing(spacing)
    made.SetOrigin(origin)
    return made


def mirrored(made: sitk.Image) -> sitk.Image:
    """The same voxels with a header that mirrors them about the first one."""
    made.SetDirection((-1, 0, 0, 0, 1, 0, 0, 0, 1))
    return made


def written(path, made: sitk.Image):
    sitk.WriteImage(made, str(path))
    return path


@pytest.mark.parametrize("orientation", ["LPS", "RAS", "SPL", "AIR", "PSR", "LIP"])
def test_the_axial_axis_in_any_storage(tmp_path, orientation):
    """One axial slice of the patient is one slice of the array, along the axis that is named."""
    labels = np.zeros((5, 6, 7), np.uint8)
    labels[3] = 1
    read = read_labels(written(tmp_path / "a.nii.gz", sitk.DICOMOrient(image(labels), orientation)))
    across = [
        axis for axis in range(3) if read.labels.any(axis=tuple({0, 1, 2} - {axis})).sum() == 1
    ]
    assert across == [read.grid.axial_axis]
    assert read.spacing[read.grid.axial_axis] == pytest.approx(4.0)


@pytest.mark.parametrize("orientation", ["LPS", "RAS", "AIR"])
def test_both_readers_find_the_same_grid(tmp_path, orientation):
    """NIfTI is read by nibabel, NRRD by SimpleITK."""
    labels = np.random.default_rng(0).integers(0, 14, (5, 6, 7)).astype(np.uint8)
    nifti, nrrd = (
        read_labels(written(tmp_path / name, sitk.DICOMOrient(image(labels), orientation)))
        for name in ("a.nii.gz", "a.nrrd")
    )
    assert (
        np.array_equal(nifti.labels, nrrd.labels)
        and nifti.grid.size == nrrd.grid.size
        and nifti.grid.axial_axis == nrrd.grid.axial_axis
    )
    for name in ("spacing", "origin", "direction"):
        np.testing.assert_allclose(getattr(nifti.grid, name), getattr(nrrd.grid, name), atol=1e-5)


def test_sheared_axes_which_simpleitk_refuses(tmp_path):
    affine = np.diag((1.5, 1.5, 3.0, 1.0))
    affine[1, 2] = 0.3
    nibabel.save(nibabel.Nifti1Image(np.ones((4, 5, 6), np.uint8), affine), tmp_path / "a.nii.gz")
    read = read_labels(tmp_path / "a.nii.gz")
    assert (
        read.spacing == pytest.approx((np.hypot(3, 0.3), 1.5, 1.5))
        and read.grid.axial_axis == 0
        and read.labels.shape == (6, 5, 4)
    )
    with pytest.raises(RuntimeError, match="orthonormal"):
        sitk.ReadImage(str(tmp_path / "a.nii.gz"))


def test_a_header_with_two_voxel_sizes_is_refused(tmp_path):
    made = nibabel.Nifti1Image(np.ones((4, 5, 6), np.uint8), np.diag((1.5, 1.5, 3.0, 1.0)))
    made.header["pixdim"][3] = 2.0
    nibabel.save(made, tmp_path / "a.nii.gz")
    with pytest.raises(
        UserError,
        match=r"two voxel sizes \(x, y, z\), \(1.5, 1.5, 2\) mm in pixdim and \(1.5, 1.5, 3\) mm",
    ):
        read_labels(tmp_path / "a.nii.gz")


def test_an_oblique_image_has_the_nearest_axis(tmp_path):
    turned = image(np.ones((5, 6, 7), np.uint8))
    c, s = np.cos(np.radians(40)), np.sin(np.radians(40))
    turned.SetDirection((1, 0, 0, 0, c, -s, 0, s, c))
    assert read_grid(written(tmp_path / "a.nii.gz", turned)).axial_axis == 0


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".nrrd", ".mha"])
@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.float32])
def test_whole_numbers_in_any_file_and_type(tmp_path, ending, kind):
    labels = np.arange(4 * 5 * 6).reshape(4, 5, 6) % 14
    read = read_labels(written(tmp_path / f"a{ending}", image(labels.astype(kind))))
    assert np.array_equal(read.labels, labels) and read.spacing == pytest.approx((4.0, 1.5, 0.8))


@pytest.mark.parametrize("value", [0.5, -1.0, 70000.0, np.nan])
def test_what_is_no_label_is_refused(tmp_path, value):
    voxels = np.zeros((3, 4, 5), np.float32)
    voxels[1, 2, 3] = value
    with pytest.raises(UserError, match=r"a\.nii\.gz is not a label image: 1 of 60 voxels"):
        read_labels(written(tmp_path / "a.nii.gz", image(voxels)))


def test_unreadable_flat_and_coloured_files_are_refused(tmp_path):
    (tmp_path / "text.nii.gz").write_text("no image")
    noise = image(np.random.default_rng(0).integers(0, 9, (20, 30, 40)).astype(np.uint8))
    for ending in (".nii.gz", ".nii", ".nrrd", ".mha"):
        whole = written(tmp_path / f"half{ending}", noise).read_bytes()
        (tmp_path / f"half{ending}").write_bytes(whole[: len(whole) // 2])
    for name in ("text.nii.gz", "half.nii.gz", "half.nii", "half.nrrd", "half.mha", "none.nii.gz"):
        with pytest.raises(UserError, match=f"{name} cannot be read: .*"):
            read_labels(tmp_path / name)
    written(tmp_path / "flat.nii.gz", sitk.GetImageFromArray(np.ones((4, 5), np.uint8)))
    written(
        tmp_path / "rgb.nii.gz",
        sitk.GetImageFromArray(np.ones((3, 4, 5, 3), np.uint8), isVector=True),
    )
    for name in ("flat.nii.gz", "rgb.nii.gz"):
        with pytest.raises(UserError, match=f"{name} cannot be read: not a 3D label image"):
            read_labels(tmp_path / name)


def test_grids(tmp_path):
    labels = np.zeros((5, 6, 7), np.uint8)
    reference = written(tmp_path / "reference.nii.gz", image(labels))
    check_same_grid(
        written(tmp_path / "same.nii.gz", image(labels, origin=(-10.00005, 20.0, 5.0))), reference
    )
    for made, said in (
        (image(labels[1:]), r"other.nii.gz has 7 x 6 x 4 voxels .* has 7 x 6 x 5"),
        (
            image(labels, spacing=(0.8, 1.5, 5.0)),
            r"spacing \(0.8, 1.5, 5\) and \(0.8, 1.5, 4\), 1 mm apart",
        ),
        (image(labels, origin=(-10.0, 22.5, 5.0)), r"origin .*, 2.5 mm apart"),
        (mirrored(image(labels)), "origin .*, 4.8 mm apart"),
    ):
        with pytest.raises(UserError, match=said) as refused:
            check_same_grid(written(tmp_path / "other.nii.gz", made), reference)
        assert str(reference) in str(refused.value)


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd"])
@pytest.mark.parametrize("orientation", ["RAS", "PIR", "SAL"])
def test_another_orientation_is_turned_before_it_is_compared(tmp_path, orientation, ending):
    labels = np.random.default_rng(0).integers(0, 4, (5, 6, 7)).astype(np.uint8)
    reference = written(tmp_path / f"a{ending}", image(labels))
    turned = sitk.DICOMOrient(image(labels), orientation)
    predicted = written(tmp_path / f"b{ending}", turned)

    check_same_grid(predicted, reference)
    found = turned_labels(read_labels(predicted), read_labels(reference))
    np.testing.assert_array_equal(found, labels)

    turned.SetOrigin((0.0, 0.0, 0.0))
    with pytest.raises(UserError, match="lie at different places in the patient"):
        check_same_grid(written(predicted, turned), reference)
