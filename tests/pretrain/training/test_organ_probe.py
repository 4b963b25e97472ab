import nibabel
import numpy as np
import pytest
import torch
from torch import nn

from alice_nnunet.datasets.raw_dataset import open_raw_dataset
from alice_nnunet.errors import UserError
from alice_nnunet.pretrain.datasets.pretrain_plans import make_plans
from alice_nnunet.pretrain.training.organ_probe import (
    POINTS,
    LabeledPerson,
    labeled_cases,
    organ_probe,
    read_people,
    ridge_accuracy,
    share_of_same_organ,
)

CPU = torch.device("cpu")
SIZE = (8, 8, 8)
ORGANS = {1: 60, 2: -80, 5: 200}  # label -> HU


class Intensity(nn.Module):
    """Features (1, v, v^2) of the voxels themselves, on a grid of 4 x 4 x 4 tokens."""

    def features(self, crop):
        mean = nn.functional.avg_pool3d(crop, 2)
        return [torch.cat([torch.ones_like(mean), mean, mean**2], 1)]


class Blind(nn.Module):
    """Features that say nothing of the crop but are not all equal."""

    def features(self, crop):
        generator = torch.Generator().manual_seed(len(crop))
        return [torch.rand(len(crop), 3, 4, 4, 4, generator=generator)]


def person(name: str, values: dict[int, float], seed: int) -> LabeledPerson:
    """Organs are slabs of 16 voxels along z, each of one value."""
    rng = np.random.default_rng(seed)
    image = np.repeat(list(values.values()), 16).astype(np.float32)[None, :, None, None]
    image = np.broadcast_to(image, (1, 16 * len(values), 16, 16))
    points = {
        organ: np.array([16 * number + 8, 8, 8]) + rng.integers(-2, 3, (POINTS, 3))
        for number, organ in enumerate(values)
    }
    return LabeledPerson(name, image, points)


def test_organs_that_the_features_tell_apart_are_found_and_others_by_chance():
    people = [person("a", {1: 0.1, 2: 0.5, 5: 0.9}, 0), person("b", {1: 0.1, 2: 0.5, 5: 0.9}, 1)]

    found = organ_probe(Intensity(), people, SIZE, CPU, "fp32")
    assert found.organs == found.retrieval == 1 and found.chance == pytest.approx(1 / 3)

    found = organ_probe(Blind(), people, SIZE, CPU, "fp32")
    assert 0.15 < found.organs < 0.55 and 0.15 < found.retrieval < 0.55


def test_the_ridge_classifier_is_the_closed_form():
    rng = torch.Generator().manual_seed(0)
    first, second = torch.randn(2, 60, 5, generator=rng, dtype=torch.float64)
    organ = np.repeat(np.arange(3), 20)
    first[20:40] += 1
    second[20:40] += 1

    mean, deviation = first.mean(0), first.std(0) + 1e-6
    a, b = ((features - mean) / deviation for features in (first, second))
    targets = torch.eye(3, dtype=torch.float64)[torch.from_numpy(organ)] - 1 / 3
    weights = torch.linalg.solve(a.T @ a + 0.1 * 60 * torch.eye(5), a.T @ targets)
    expected = ((b @ weights).argmax(1).numpy() == organ).mean()
    assert ridge_accuracy(first, second, organ) == pytest.approx(expected)


def test_retrieval_is_the_loop():
    rng = torch.Generator().manual_seed(0)
    first, second = torch.randn(2, 12, 4, generator=rng, dtype=torch.float64)
    organ = np.repeat(np.arange(3), 4)
    right = 0
    for row in range(12):
        nearest = max(range(12), key=lambda n: torch.cosine_similarity(first[row], second[n], 0))
        right += organ[nearest] == organ[row]
    assert share_of_same_organ(first, second, organ) == pytest.approx(right / 12)


@pytest.fixture
def plans(raw_dataset) -> dict:
    image = nibabel.Nifti1Image(np.zeros((30, 30, 40), np.int16), np.diag([2.0, 2, 2, 1]))
    raw = open_raw_dataset(raw_dataset({"a": image}).name)
    return make_plans(raw, (2.0, 2.0, 2.0), (16, 16, 16))


def write_person(folder, name: str, organs: dict[int, int], image_name: str) -> None:
    """A body with slabs of organs, stored head first: the reader must turn image and labels."""
    voxels = np.full((30, 30, 40), 0, np.int16)
    labels = np.zeros((30, 30, 40), np.uint8)
    for number, (label, value) in enumerate(organs.items()):
        voxels[5:25, 5:25, 10 * number : 10 * number + 10] = value
        labels[5:25, 5:25, 10 * number : 10 * number + 10] = label
    affine = np.diag([2.0, 2.0, -2.0, 1.0])
    for kind, content in (("images", voxels), ("labels", labels)):
        (folder / kind).mkdir(exist_ok=True)
        file = image_name if kind == "images" else f"{name}.nii.gz"
        nibabel.save(nibabel.Nifti1Image(content, affine), folder / kind / file)


def test_people_are_preprocessed_and_their_points_lie_in_the_organs(tmp_path, plans):
    write_person(tmp_path, "a", ORGANS, "a_0000.nii.gz")
    write_person(tmp_path, "b", {1: 60, 5: 200, 7: 100}, "b.nii.gz")

    people = read_people(tmp_path, plans, channels=1)

    window = plans["foreground_intensity_properties_per_channel"]["0"]
    assert [person.name for person in people] == ["a", "b"]
    for person in people:
        assert list(person.points) == [1, 5]  # that both have
        for organ, points in person.points.items():
            assert points.shape == (POINTS, 3)
            found = {round(float(person.image[0, z, y, x]), 4) for z, y, x in points}
            low, high = window["percentile_00_5"], window["percentile_99_5"]
            assert found == {round((ORGANS[organ] - low) / (high - low), 4)}


def test_a_folder_that_cannot_be_probed_says_why(tmp_path, plans):
    with pytest.raises(UserError, match=r"two labeled people or more, found 0 in .*labels"):
        labeled_cases(tmp_path, 1)

    write_person(tmp_path, "a", ORGANS, "a_0000.nii.gz")
    write_person(tmp_path, "b", ORGANS, "c_0000.nii.gz")
    with pytest.raises(UserError, match=r"b.nii.gz has no image .*b_0000.nii.gz"):
        labeled_cases(tmp_path, 1)

    write_person(tmp_path, "b", {9: 60}, "b_0000.nii.gz")
    with pytest.raises(UserError, match=r"two organs or more that all people .* found 0"):
        read_people(tmp_path, plans, 1)

    (tmp_path / "labels" / "b.nii.gz").write_bytes(b"")
    with pytest.raises(UserError, match=r"probe_labels: .*b.nii.gz: "):
        read_people(tmp_path, plans, 1)
