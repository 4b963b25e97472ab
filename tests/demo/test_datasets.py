import nibabel
import numpy as np
import pytest

from alice_nnunet.demo.datasets import TEST_PEOPLE, UNLABELED, volumes, write_datasets
from alice_nnunet.demo.tasks import TASKS, TUMOURS


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    folder = tmp_path_factory.mktemp("raw")
    write_datasets(folder)
    return folder


def people(folder) -> set[str]:
    return {path.name.removesuffix(".nii.gz").removesuffix("_0000") for path in folder.iterdir()}


def test_test_people_are_in_no_folder_of_a_training(raw):
    assert people(raw / UNLABELED / "imagesTr") == set(volumes()) - TEST_PEOPLE
    for task in TASKS:
        for split, expected in (("Tr", task.training), ("Ts", task.test)):
            for kind in ("images", "labels"):
                assert people(raw / task.dataset / f"{kind}{split}") == set(expected)
        assert not TEST_PEOPLE & set(task.training)


@pytest.mark.parametrize("task", TASKS)
def test_labels_lie_on_the_scan_and_are_all_there(raw, task):
    for person in task.test:
        image = nibabel.load(raw / task.dataset / "imagesTs" / f"{person}_0000.nii.gz")
        labels = nibabel.load(raw / task.dataset / "labelsTs" / f"{person}.nii.gz")
        assert labels.shape == image.shape and np.allclose(labels.affine, image.affine)
        assert set(np.unique(labels.dataobj)) == set(range(len(task.labels) + 1))


def test_tumours_are_of_the_size_that_the_notice_says():
    """100 to 300 ml; people are trained on and tested by turns."""
    ordered = sorted(TUMOURS.training + TUMOURS.test)
    assert ordered[::2] == list(TUMOURS.training) and ordered[1::2] == list(TUMOURS.test)

    for person in ordered:
        labels = nibabel.load(volumes()[person].with_name(f"{person}_labels.nii.gz"))
        millilitres = (np.asarray(labels.dataobj) > 0).sum() * np.prod(labels.header.get_zooms())
        assert 100 <= millilitres / 1000 <= 300


def test_volumes_are_stored_as_the_notice_says():
    for path in volumes().values():
        image = nibabel.load(path)
        voxels = np.asarray(image.dataobj)
        assert voxels.dtype == np.int16 and not (voxels % 4).any()
        assert voxels.min() >= -1024 and voxels.max() <= 1024
        assert min(image.header.get_zooms()) >= 2.999
        assert not image.header["descrip"].item() and not len(image.header.extensions)
