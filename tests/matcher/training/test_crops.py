"""Crops of volumes whose voxels tell their own position in mm.

There is one folder for each axis; items of equal seeds show the same crop.
"""

import numpy as np
import pytest
import torch
from scipy import ndimage

from alice_nnunet.data.body import Body, find_body
from alice_nnunet.data.volumes import open_volume, save_volume
from alice_nnunet.matcher.training.crops import BodyCrops, centre_inside, points_between

SPACINGS = {"even": (3.0, 3.0, 3.0), "fine": (1.1, 0.9, 1.3), "thick": (5.0, 0.8, 0.8)}
EXTENT, MARGIN = (100.0, 110.0, 120.0), 20.0  # mm of a volume, and of air around its body
SIZE, VOXEL, POINTS = (14, 16, 18), 3.0, 40
CASES = list(SPACINGS)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> list:
    folders = [tmp_path_factory.mktemp(f"axis{axis}") for axis in range(3)]
    for case, spacing in SPACINGS.items():
        axes = [(np.arange(round(e / s)) + 0.5) * s for e, s in zip(EXTENT, spacing)]
        inside = np.ones([len(a) for a in axes], bool)
        for axis, positions in enumerate(axes):
            inside &= ((positions > MARGIN) & (positions < positions[-1] - MARGIN)).reshape(
                [-1 if a == axis else 1 for a in range(3)]
            )
        body = find_body(inside, spacing)
        for folder, position in zip(folders, np.meshgrid(*axes, indexing="ij")):
            image = np.stack([position, np.full_like(position, -1)]).astype(np.float32)
            save_volume(
                folder,
                case,
                image,
                {"alice": {"spacing": spacing, "body": body.to_dict(), "plans_sha256": ""}},
                SIZE,
            )
    return folders


def crops(folder, cases=CASES, seed=(0, 0)) -> BodyCrops:
    return BodyCrops(folder, cases, SIZE, VOXEL, POINTS, seed, 100)


def value_at(crop: torch.Tensor, points: torch.Tensor) -> np.ndarray:
    """The crop at points (mm from its middle), between the middles of its voxels."""
    index = points.numpy() / VOXEL + (np.array(SIZE) - 1) / 2
    return ndimage.map_coordinates(crop[0].numpy(), index.T, order=1, mode="nearest")


def shown(crop: torch.Tensor, points: torch.Tensor) -> np.ndarray:
    """Points around which the crop is neither cut off nor outside the volume."""
    index = points.numpy() / VOXEL + (np.array(SIZE) - 1) / 2
    return ((index > 0.5) & (index < np.array(SIZE) - 1.5)).all(1)


@pytest.mark.parametrize("case", CASES)
def test_crops_and_points_are_where_they_say(folders, case):
    """A crop shows at a point the position of the point, mm of the volume, in the body."""
    spacing, body, checked = np.array(SPACINGS[case]), open_volume(folders[0], case).body, 0
    for index in range(12):
        items = [crops(folder, [case])[index] for folder in folders]
        points = items[0]["points"]
        assert all(torch.equal(item["points"], points) for item in items) and points.shape == (
            POINTS,
            3,
        )
        assert all(
            item["crop"].shape == (1, *SIZE) and item["crop"].dtype == torch.float32
            for item in items
        )
        inner = shown(items[0]["crop"], points)
        position = np.stack([value_at(item["crop"], points) for item in items], 1)[
            inner
        ]  # (K, 3) mm of the volume
        middle = position - points.numpy()[inner]
        assert (np.abs(middle - np.median(middle, 0)) < 0.3 * spacing + 0.05).all()
        assert (
            np.abs(items[0]["middle"].numpy() - np.median(middle, 0)) < 0.3 * spacing + 0.05
        ).all()
        for place in np.median(middle, 0) + points.numpy():
            around = (
                np.floor(place / spacing + shift)
                for shift in np.mgrid[-1:2, -1:2, -1:2].reshape(3, -1).T * 0.3
            )
            assert any(body.contains(tuple(voxel.astype(int))) for voxel in around)
        checked += inner.sum()
    assert checked > 100


@pytest.mark.parametrize("case", CASES)
def test_points_are_in_the_crop_or_half_a_cell_beside_it(folders, case):
    body = open_volume(folders[0], case).body
    reach = (np.array(SIZE) * VOXEL + (np.array(body.cell) + 1) * SPACINGS[case]) / 2
    points = torch.cat([crops(folders[0], [case])[index]["points"] for index in range(10)])
    assert (points.abs().numpy() <= reach).all()
    assert (points.abs().numpy() <= np.array(SIZE) * VOXEL / 2).all(1).mean() > 0.7


def test_an_item_depends_on_seed_and_index_alone(folders):
    first, second = crops(folders[2]), crops(folders[2])
    second[7], second[2]

    def same(a, b):
        return (
            torch.equal(a["crop"], b["crop"])
            and torch.equal(a["points"], b["points"])
            and a["case"] == b["case"]
        )

    assert same(first[5], second[5]) and len(first) == 100
    for other in (first[6], crops(folders[2], seed=(1, 0))[5], crops(folders[2], seed=(0, 1))[5]):
        assert not same(first[5], other)


def test_every_case_comes_and_items_come_in_pairs_of_one_case(folders):
    items = [crops(folders[0])[index] for index in range(60)]
    assert {item["case"] for item in items} == set(CASES) and all(
        CASES[item["number"]] == item["case"] for item in items
    )
    pairs = [(a, b) for a, b in zip(items[::2], items[1::2])]
    assert all(a["case"] == b["case"] for a, b in pairs) and not any(
        torch.equal(a["points"], b["points"]) for a, b in pairs
    )
    assert any(a["case"] != b["case"] for a, b in zip(items[1::2], items[2::2]))


@pytest.mark.parametrize(
    "centre, extent, size, expected",
    [
        (0, 10, 100, 5),
        (99, 10, 100, 95),
        (50, 10, 100, 50),
        (0, 7, 100, 3),
        (99, 7, 100, 96),
        (3, 40, 30, 15),
        (3, 30, 30, 15),
    ],
)
def test_a_crop_stays_inside_the_volume_where_it_can(centre, extent, size, expected):
    found = centre_inside((centre, 1, 1), (extent, 1, 1), (size, 2, 2))[0]
    assert found == expected
    start = found - extent // 2  # as crop_around takes it
    assert extent >= size or (start >= 0 and start + extent <= size)


def test_points_spread_evenly_over_the_body_between_two_voxels():
    """Two cells of 5 x 4 x 2 voxels in reach, one beyond, and one that sticks out of the volume."""
    cells = np.zeros((4, 3, 3), bool)
    cells[1, 1, 1] = cells[1, 2, 1] = cells[3, 1, 1] = True
    body, spacing = Body(cells, (5, 4, 2), ((5, 4, 2), (18, 10, 4)), (18, 10, 6)), (2.0, 3.0, 5.0)
    points = points_between(
        body, np.array([4, 4, 0]), np.array([12, 12, 6]), spacing, 4000, np.random.default_rng(0)
    )
    assert {body.contains(tuple(voxel)) for voxel in np.floor(points / spacing).astype(int)} == {
        True
    }
    low, high = np.array([5, 4, 2]) * spacing, np.array([10, 10, 4]) * spacing
    assert np.allclose(points.min(0), low, atol=0.3) and np.allclose(points.max(0), high, atol=0.3)
    upper = points[:, 1] < 8 * spacing[1]
    assert upper.mean() == pytest.approx(0.5, abs=0.05)
    assert np.allclose(points[upper].mean(0), (7.5 * 2, 6 * 3, 3 * 5), atol=0.3)
