import gzip
import locale

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.imageio.nibabel_reader_writer import NibabelIOWithReorient

from alice_nnunet.checks.findings import Decisions
from alice_nnunet.checks.formats import same_locale
from alice_nnunet.datasets.raw_image import check_voxels, read_case, read_geometry

CT = [(-125.0, 255.0)]
NAMES = ["a_0000.nii.gz", "a_0001.nii.gz"]
AFFINE = np.diag([3.0, 4.0, 5.0, 1.0])
SPACING = (4.0, 4.0, 4.0)


def ramp(*shape) -> np.ndarray:
    return np.linspace(-1000, 1000, int(np.prod(shape))).reshape(shape).astype(np.int16)


def save(path, voxels=None, affine=AFFINE):
    if voxels is None:
        voxels = ramp(10, 12, 14)
    nibabel.save(nibabel.Nifti1Image(voxels, affine), path)
    return path


@pytest.fixture
def path(tmp_path):
    return tmp_path / "a_0000.nii.gz"


def test_header_equals_nnunets_geometry(path):
    rotation = nibabel.eulerangles.euler2mat(0.05, -0.03, 0.02)
    affine = nibabel.affines.from_matvec(
        rotation @ np.array([[0, 0, 5], [-3, 0, 0], [0, 4, 0]]), (5, 6, 7)
    )
    save(path, affine=affine)

    geometry = read_geometry(path).reoriented()
    image, properties, _ = read_case([path], NibabelIOWithReorient())
    assert image.shape[1:] == geometry.shape[::-1]
    reoriented = properties["nibabel_stuff"]["reoriented_affine"]
    np.testing.assert_allclose(geometry.affine, reoriented, atol=1e-5)


@pytest.mark.parametrize(
    "shape, message",
    [
        ((10, 12, 14, 2), r"not a 3D volume: its shape is \(10, 12, 14, 2\)"),
        ((10, 12), r"not a 3D volume: its shape is \(10, 12\)"),
        ((10, 12, 1), r"only one slice along an axis: its shape is \(10, 12, 1\)"),
        ((0, 12, 14), "has no voxels"),
    ],
)
def test_wrong_shapes(path, shape, message):
    with pytest.raises(ValueError, match=message):
        read_case([save(path, ramp(*shape))], NibabelIOWithReorient())


def truncated(content: bytes) -> bytes:
    return content[: len(content) // 2]


@pytest.mark.parametrize(
    "spoil",
    [
        truncated,
        lambda content: b"this is a text file\n",
        lambda content: b"",
        lambda content: gzip.compress(gzip.decompress(content)[:400]),
    ],
)
def test_unreadable_files(path, spoil):
    save(path)
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(ValueError, match=r"cannot be read: .+"):
        read_case([path], NibabelIOWithReorient())


@pytest.mark.parametrize(
    "offset, values, message",
    [
        (80, (1, 1, 1), "two voxel sizes"),  # pixdim, while the affine stays
        (280, (0, 0, 0, 0), "positive numbers|cannot be read"),  # the affine's first row
        (280, (np.nan, 0, 0, 0), "entries that are no numbers|cannot be read"),
    ],
)
def test_voxel_sizes_that_contradict_each_other_or_are_no_sizes(tmp_path, offset, values, message):
    path = save(tmp_path / "a_0000.nii")
    content = bytearray(path.read_bytes())
    content[offset : offset + 4 * len(values)] = np.array(values, "<f4").tobytes()
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_geometry(path)


def test_channels_must_lie_on_one_grid(tmp_path, path):
    save(path)
    other = save(tmp_path / "a_0001.nii.gz", affine=np.diag([3.0, 4.0, 5.1, 1.0]))
    with pytest.raises(
        ValueError, match=r"a_0001\.nii\.gz: lies on another grid than a_0000\.nii\.gz"
    ):
        read_case([path, other], NibabelIOWithReorient())

    save(other, ramp(10, 12, 13))
    with pytest.raises(ValueError, match=r"\(10, 12, 13\) and \(10, 12, 14\)"):
        read_case([path, other], NibabelIOWithReorient())

    save(
        other,
        ramp(10, 12, 14)[::-1],
        np.array([[-3, 0, 0, 27], [0, 4, 0, 0], [0, 0, 5, 0], [0, 0, 0, 1]]),
    )
    image, _, _ = read_case([path, other], NibabelIOWithReorient())
    np.testing.assert_array_equal(image[0], image[1])

    other.write_bytes(b"text")
    with pytest.raises(ValueError, match=r"a_0001\.nii\.gz: cannot be read"):
        read_case([path, other], NibabelIOWithReorient())


@pytest.mark.parametrize(
    "voxels, windows, message",
    [
        (np.full((1, 4, 4, 4), np.nan), CT, "64 of 64 voxels are not finite"),
        (np.array([0.0, np.inf, 1, 2]).reshape(1, 1, 2, 2), CT, "1 of 4 voxels are not finite"),
        (
            np.full((1, 4, 4, 4), -1024.0),
            CT,
            r"nothing above -125 HU, only air \(the largest value is -1024\)",
        ),
        (np.full((1, 4, 4, 4), 3000.0), CT, "nothing below 255 HU"),
        (np.full((1, 4, 4, 4), 7.0), CT, "empty: every voxel is 7"),
        (np.zeros((1, 4, 4, 4)), [None], "empty: every voxel is 0"),
        (
            np.stack([np.arange(8.0), np.full(8, -1000.0)]).reshape(2, 2, 2, 2),
            2 * CT,
            "a_0001.nii.gz: nothing above",
        ),
    ],
)
def test_voxels_that_are_no_image(voxels, windows, message):
    with pytest.raises(ValueError, match=message):
        check_voxels(voxels, windows, NAMES, SPACING)


def test_good_voxels():
    hu = np.arange(-500, 500, dtype=np.float32).reshape(1, 10, 10, 10)
    assert check_voxels(hu, CT, NAMES, SPACING) == []
    assert check_voxels(hu - 2000, [None], NAMES, SPACING) == []


def test_last_axes_of_one_and_other_formats_read_as_the_volume(tmp_path, path):
    """.nrrd and .mha as SimpleITK writes them, a DICOM-like LPS affine in NIfTI."""
    save(path, affine=np.diag([-3.0, -4.0, 5.0, 1.0]))
    expected, properties, _ = read_case([path], NibabelIOWithReorient())

    four_d = save(tmp_path / "b.nii.gz", ramp(10, 12, 14)[..., None], np.diag([-3.0, -4, 5, 1]))
    by_itk = [tmp_path / "c.nrrd", tmp_path / "d.mha"]
    for other in by_itk:
        sitk.WriteImage(sitk.ReadImage(str(path)), str(other))
    for other in (four_d, *by_itk):
        image, found, findings = read_case([other], NibabelIOWithReorient())
        np.testing.assert_array_equal(image, expected)
        assert found["spacing"] == pytest.approx(properties["spacing"]) and findings == []


def write_dicom(
    folder, voxels, skip=(), directions="1\\0\\0\\0\\1\\0", step=(0.0, 0.0, 5.0)
) -> None:
    """One file for each axial slice of 3 x 4 mm pixels.

    Args:
        folder: new.
        voxels: (x, y, z), HU.
        skip: slices that are missing.
        directions: of rows and columns, LPS.
        step: mm from one slice to the next, LPS.
    """
    folder.mkdir()
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for z in range(voxels.shape[2]):
        if z in skip:
            continue
        piece = sitk.GetImageFromArray(voxels[:, :, z].T)
        piece.SetSpacing((3.0, 4.0))
        place = [start + z * along for start, along in zip((-10, 20, 0), step)]
        tags = {
            "0020|000e": "1.2.3",
            "0008|0060": "CT",
            "0018|0050": "5",
            "0020|0013": str(z),
            "0020|0032": "\\".join(f"{value:g}" for value in place),
            "0020|0037": directions,
        }
        for tag, value in tags.items():
            piece.SetMetaData(tag, value)
        writer.SetFileName(str(folder / f"{z:03d}.dcm"))
        with same_locale():  # GDCM changes it
            writer.Execute(piece)


def by_simpleitk(path) -> tuple[np.ndarray, list[float]]:
    """Voxels (Z, Y, X) and spacing (z, y, x) of a file or series, turned to RAS by SimpleITK."""
    if path.is_dir():
        with same_locale():
            image = sitk.ReadImage(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(path)))
    else:
        image = sitk.ReadImage(str(path))
    turned = sitk.DICOMOrient(image, "RAS")
    return sitk.GetArrayFromImage(turned), list(turned.GetSpacing()[::-1])


SAGITTAL = ("0\\1\\0\\0\\0\\-1", (5.0, 0.0, 0.0))


@pytest.mark.parametrize("kind", ["axial", "head first", "sagittal", "nrrd PSR", "mha tilted"])
def test_other_formats_are_turned_as_simpleitk_turns_them_and_read_once(
    tmp_path, kind, monkeypatch
):
    voxels = ramp(10, 12, 14)
    path = tmp_path / "a_0000"
    if kind == "sagittal":
        write_dicom(path, voxels, directions=SAGITTAL[0], step=SAGITTAL[1])
    elif kind in ("axial", "head first"):
        write_dicom(path, voxels, step=(0, 0, 5 if kind == "axial" else -5))
    else:
        image = sitk.GetImageFromArray(voxels)
        image.SetSpacing((3.0, 4.0, 5.0))
        image.SetOrigin((-7.0, 11.0, 13.0))
        path = tmp_path / f"a_0000.{kind[:4].strip()}"
        if "tilted" in kind:
            rotation = nibabel.eulerangles.euler2mat(0.05, -0.03, 0.02) @ np.diag([-1, 1, -1])
            image.SetDirection(rotation.ravel())
        else:
            image = sitk.DICOMOrient(image, "PSR")
        sitk.WriteImage(image, str(path))
    expected, spacing = by_simpleitk(path)

    reads = []
    read = sitk.ReadImage
    monkeypatch.setattr(sitk, "ReadImage", lambda file: reads.append(file) or read(file))
    image, properties, findings = read_case([path], NibabelIOWithReorient())
    np.testing.assert_array_equal(image[0], expected)
    assert properties["spacing"] == pytest.approx(spacing, rel=1e-5)
    assert findings == [] and len(reads) == 1


def test_a_dicom_series_is_one_image(tmp_path):
    voxels = ramp(10, 12, 14)
    write_dicom(tmp_path / "a_0000", voxels)
    before = locale.setlocale(locale.LC_CTYPE)
    image, properties, _ = read_case([tmp_path / "a_0000"], NibabelIOWithReorient())
    assert locale.setlocale(locale.LC_CTYPE) == before
    np.testing.assert_array_equal(image[0], voxels[::-1, ::-1].T)  # LPS to RAS, as (z, y, x)
    assert properties["spacing"] == pytest.approx([5, 4, 3])

    write_dicom(tmp_path / "b_0000", voxels, skip=(6,))
    with pytest.raises(ValueError, match="slices are missing or lie at several distances"):
        read_case([tmp_path / "b_0000"], NibabelIOWithReorient())
    (tmp_path / "c_0000").mkdir()
    with pytest.raises(ValueError, match="no DICOM series"):
        read_case([tmp_path / "c_0000"], NibabelIOWithReorient())
    write_dicom(tmp_path / "d_0000", voxels, step=(0.0, 1.0, 5.0))  # a tilted gantry
    with pytest.raises(ValueError, match=r"axes at an angle of 79 degrees.*gantry tilt"):
        read_case([tmp_path / "d_0000"], NibabelIOWithReorient())


def test_the_form_that_the_user_takes_is_read(path):
    mirrored = np.diag([-3.0, 4.0, 5.0, 1.0])
    image = nibabel.Nifti1Image(ramp(10, 12, 14), AFFINE)
    image.set_sform(AFFINE, 1)
    image.set_qform(mirrored, 1)
    nibabel.save(image, path)

    with pytest.raises(ValueError, match=r"sform RAS, qform LAS.*--take sform or --take qform"):
        read_case([path], NibabelIOWithReorient())
    voxels = {}
    for form in ("sform", "qform"):
        decisions = Decisions(take=frozenset({form}))
        voxels[form], _, findings = read_case([path], NibabelIOWithReorient(), decisions)
        assert [finding.kind for finding in findings] == ["two-orientations"]
    np.testing.assert_array_equal(voxels["sform"], voxels["qform"][..., ::-1])
