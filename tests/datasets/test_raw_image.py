import gzip

import nibabel
import numpy as np
import pytest
from nnunetv2.imageio.nibabel_reader_writer import NibabelIOWithReorient

from alice_nnunet.datasets.raw_image import check_header, check_voxels, read_case

CT = [(-125.0, 255.0)]
AFFINE = np.diag([2.0, 3.0, 4.0, 1.0])


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
        rotation @ np.array([[0, 0, 4], [-2, 0, 0], [0, 3, 0]]), (5, 6, 7)
    )
    save(path, affine=affine)

    shape, turned = check_header(path)
    image, properties = read_case([path], NibabelIOWithReorient())
    assert image.shape[1:] == shape[::-1]
    np.testing.assert_allclose(turned, properties["nibabel_stuff"]["reoriented_affine"], atol=1e-5)


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
        (280, (np.nan, 0, 0, 0), "positive numbers|cannot be read"),
    ],
)
def test_voxel_sizes_that_contradict_each_other_or_are_no_sizes(tmp_path, offset, values, message):
    path = save(tmp_path / "a_0000.nii")
    content = bytearray(path.read_bytes())
    content[offset : offset + 4 * len(values)] = np.array(values, "<f4").tobytes()
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        check_header(path)


def test_channels_must_lie_on_one_grid(tmp_path, path):
    save(path)
    other = save(tmp_path / "a_0001.nii.gz", affine=np.diag([2.0, 3.0, 4.1, 1.0]))
    with pytest.raises(
        ValueError, match=r"a_0001\.nii\.gz lies on another grid than a_0000\.nii\.gz"
    ):
        read_case([path, other], NibabelIOWithReorient())

    save(other, ramp(10, 12, 13))
    with pytest.raises(ValueError, match=r"\(10, 12, 13\) and \(10, 12, 14\)"):
        read_case([path, other], NibabelIOWithReorient())

    save(
        other,
        ramp(10, 12, 14)[::-1],
        np.array([[-2, 0, 0, 18], [0, 3, 0, 0], [0, 0, 4, 0], [0, 0, 0, 1]]),
    )
    image, _ = read_case([path, other], NibabelIOWithReorient())
    np.testing.assert_array_equal(image[0], image[1])

    other.write_bytes(b"text")
    with pytest.raises(ValueError, match=r"a_0001\.nii\.gz cannot be read"):
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
            "channel 1: nothing above",
        ),
    ],
)
def test_voxels_that_are_no_image(voxels, windows, message):
    with pytest.raises(ValueError, match=message):
        check_voxels(voxels, windows)


def test_good_voxels():
    check_voxels(np.arange(-500, 500, dtype=np.float32).reshape(1, 10, 10, 10), CT)
    check_voxels(np.arange(1000, dtype=np.float32).reshape(1, 10, 10, 10) - 2000, [None])
