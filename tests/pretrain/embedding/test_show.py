"""Where the points of alice-embed --show lie in the scans."""

import nibabel
import numpy as np

from alice_nnunet.data.volumes import open_volume
from alice_nnunet.pretrain.datasets.preprocessing import preprocess_dataset
from alice_nnunet.pretrain.embedding.show import in_scan, write_points

VOLUMES = "preprocessed/Dataset022_Test/AlicePretrainPlans_3d_fullres"


def test_a_point_in_mm_is_the_same_place_in_the_scan(raw_dataset, nnunet_folders):
    """A bright spot in a scan that is stored as LPS, off center, at another spacing."""
    voxels = np.full((40, 36, 24), -1000, np.int16)
    voxels[6:34, 6:30, 4:20] = 0
    voxels[24:27, 12:15, 9:12] = 200  # its middle is voxel (25, 13, 10)
    affine = np.array([[-2.0, 0, 0, 50], [0, -2.0, 0, 70], [0, 0, 4.0, -300], [0, 0, 0, 1]])
    raw_dataset({"a": nibabel.Nifti1Image(voxels, affine)})
    preprocess_dataset(22, 1, spacing=(3.0, 1.5, 1.5), patch_size=(16, 16, 16))

    volumes = nnunet_folders / VOLUMES
    image = open_volume(volumes, "a").image[:1][0]
    spot = np.argwhere(image > 0.75).mean(0)

    place = in_scan(volumes, "a", tuple(spot))
    assert np.allclose(place, affine[:3, :3] @ [25, 13, 10] + affine[:3, 3], atol=0.5)


def test_points_are_written_as_slicer_reads_them(tmp_path):
    path = write_points(tmp_path, "a", ("a", "b"), [np.array([1.5, -2, 3])])
    assert path.name == "matches_a_b_in_a.fcsv"
    assert "CoordinateSystem = RAS" in path.read_text()
    assert path.read_text().splitlines()[-1] == "1,1.500,-2.000,3.000,0,0,0,1,1,1,0,1"
