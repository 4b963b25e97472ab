import nibabel
import numpy as np

from alice_nnunet.demo.datasets import LABELED, LABELS, TEST_PERSON, UNLABELED, write_datasets


def test_the_datasets_keep_the_test_person_apart(tmp_path):
    write_datasets(tmp_path)

    unlabeled = {path.name for path in (tmp_path / UNLABELED / "imagesTr").iterdir()}
    labeled = {path.name for path in (tmp_path / LABELED / "imagesTr").iterdir()}
    test = [path.name for path in (tmp_path / LABELED / "imagesTs").iterdir()]
    assert len(unlabeled) >= 5 and len(labeled) >= 2
    assert not any(TEST_PERSON in name for name in unlabeled | labeled)
    assert test == [f"{TEST_PERSON}_0000.nii.gz"]

    labels = nibabel.load(tmp_path / LABELED / "labelsTs" / f"{TEST_PERSON}.nii.gz")
    assert set(np.unique(labels.dataobj)) == set(range(len(LABELS) + 1))
