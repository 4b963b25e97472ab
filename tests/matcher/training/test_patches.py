import numpy as np
import pytest
import torch
from scipy import ndimage

from alice_nnunet.matcher.training import patches
from alice_nnunet.matcher.training.patches import (
    BENDING,
    LARGEST_ANGLES,
    NODES,
    NOISE,
    SCALE_RANGE,
    Patches,
    change_intensities,
    draw_patches,
    vectors_at,
)

SPACINGS = [(2.0, 2.0, 2.0), (3.0, 2.0, 1.5), (1.5, 3.0, 2.0)]
CROP_MM, PATCH_SHARE = 96.0, 0.875


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def sizes(spacing) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    crop = tuple(round(CROP_MM / s) for s in spacing)
    return crop, tuple(round(n * PATCH_SHARE) for n in crop)


def centres(size, spacing) -> torch.Tensor:
    """Millimetres of all voxels from the middle of a box, (Z, Y, X, 3)."""
    axes = [(torch.arange(n) + 0.5 - n / 2) * s for n, s in zip(size, spacing)]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)


def blobs(points: torch.Tensor, size, spacing) -> torch.Tensor:
    """A bright ball of some millimetres at a point of each crop, (B, 1, *size)."""
    distance = (centres(size, spacing)[None] - points[:, None, None, None]).norm(dim=-1)
    return torch.exp(-((distance / 2.5) ** 2) / 2)[:, None]


def middle_of_brightness(image: torch.Tensor) -> np.ndarray:
    """Where the blob of a patch is, each axis from -1 to 1."""
    bright = (image - image.median()).numpy()
    bright[bright < 0.02] = 0
    return (np.array(ndimage.center_of_mass(bright)) + 0.5) / np.array(image.shape) * 2 - 1


@pytest.mark.parametrize("spacing", SPACINGS, ids=str)
def test_a_point_lies_where_the_picture_shows_it(spacing, monkeypatch):
    monkeypatch.setattr(patches, "NOISE", 0.0)
    monkeypatch.setattr(patches, "BRIGHTNESS", 0.0)
    crop, size = sizes(spacing)
    points = (torch.rand(12, 3, generator=generator(1)) * 2 - 1) * 20
    drawn = draw_patches(blobs(points, crop, spacing), size, spacing, generator())
    located = drawn.locate(points[:, None])[:, 0]
    voxel = 2 / np.array(size)
    for image, place in zip(drawn.image, located):
        assert (np.abs(middle_of_brightness(image[0]) - place.numpy()) < 0.3 * voxel).all()
    plain = (points - drawn.centre) / (
        torch.tensor(size) * torch.tensor(spacing) / 2
    )  # neither turned nor scaled
    assert ((plain - located).abs() / torch.tensor(voxel)).max() > 2


def test_each_axis_turns_and_both_ways_within_the_range():
    """Angles about each axis from the matrix, whose columns are 1 / scale long."""
    drawn = draw_patches(torch.zeros(400, 1, 4, 4, 4), (4, 4, 4), (2.0, 2.0, 2.0), generator())
    scale = 1 / drawn.matrix.norm(dim=1)
    assert (
        (scale.amin(0) < 0.82).all()
        and (scale.amax(0) > 1.22).all()
        and SCALE_RANGE[0] <= scale.min()
        and scale.max() <= SCALE_RANGE[1]
    )
    assert np.abs(np.corrcoef(scale.T.log()) - np.eye(3)).max() < 0.2  # along each axis another
    turn = drawn.matrix * scale[:, None]
    assert torch.allclose(turn @ turn.mT, torch.eye(3).expand_as(turn), atol=1e-5)
    for axis in range(3):
        a, b = (n for n in range(3) if n != axis)
        angle = torch.atan2(turn[:, b, a] - turn[:, a, b], turn[:, a, a] + turn[:, b, b]).rad2deg()
        assert (
            angle.max() > 0.8 * LARGEST_ANGLES[axis] and angle.min() < -0.8 * LARGEST_ANGLES[axis]
        )
        assert angle.abs().max() < LARGEST_ANGLES[axis] + 2  # the other two turns blur it


def test_patches_are_bent_by_a_share_of_the_distance_between_nodes():
    drawn = draw_patches(torch.zeros(200, 1, 8, 8, 8), (6, 8, 4), (3.0, 2.0, 5.0), generator())
    assert drawn.bending.shape == (200, 3, *NODES)
    expected = BENDING * np.array([18.0, 16.0, 20.0]) / NODES
    assert np.allclose(drawn.bending.std((0, 2, 3, 4)), expected, rtol=0.05)


def test_the_same_seed_draws_the_same_patches():
    crops = torch.rand(2, 1, 12, 16, 20)
    one, same, other = (
        draw_patches(crops, (8, 12, 16), (3.0, 2.0, 1.5), generator(seed)) for seed in (3, 3, 4)
    )
    assert all(
        torch.equal(getattr(one, name), getattr(same, name))
        for name in ("image", "matrix", "centre", "bending", "size")
    )
    assert one.image.shape == (2, 1, 8, 12, 16) and not torch.equal(one.image, other.image)
    assert one.size.tolist() == [24.0, 24.0, 24.0]
    going_on = generator(3)
    first, second = (draw_patches(crops, (8, 12, 16), (3.0, 2.0, 1.5), going_on) for _ in range(2))
    assert torch.equal(first.image, one.image) and not torch.equal(second.image, first.image)


def test_two_patches_of_three_quarters_overlap():
    crop, size, spacing = (22, 64, 64), (16, 48, 48), (4.0, 4.0, 4.0)
    points = (
        (torch.rand(1, 2000, 3, generator=generator(9)) * 2 - 1)
        * torch.tensor(crop)
        * torch.tensor(spacing)
        / 2
    )
    blank, drawing = torch.zeros(1, 1, 1, 1, 1).expand(1, 1, *crop), generator()
    for _ in range(8):
        first, second = (draw_patches(blank, size, spacing, drawing) for _ in range(2))
        both = (first.locate(points).abs().amax(2) < 1) & (second.locate(points).abs().amax(2) < 1)
        assert both.float().mean() > 0.05


def test_intensities_differ_in_gamma_in_brightness_and_by_noise(monkeypatch):
    """Two grey values: their difference tells the gamma, what they share the brightness."""
    monkeypatch.setattr(patches, "NOISE", 0.0)
    image = torch.full((300, 1, 12, 20, 20), 0.25)
    image[..., 10:] = 0.5
    changed = change_intensities(image, generator())
    assert changed.min() >= 0 and changed.max() <= 1
    ratio = (changed[..., 10] / changed[..., 9]).flatten(1).median(1).values.log() / np.log(
        2
    )  # 2 ** gamma where neither is clipped
    assert 0.6 < ratio.median() < 1.4 and ratio.max() > 1.2 and ratio.min() < 0.8
    assert (
        changed[:, 0, 6, 4, 4].std() > 0.02
        and (changed[:, 0, 1, 2, 2] / changed[:, 0, 10, 17, 2]).log().std() > 0.1
    )  # part by part


def test_noise_is_added_and_air_stays_dark(monkeypatch):
    monkeypatch.setattr(patches, "GAMMA", 0.0)
    monkeypatch.setattr(patches, "BRIGHTNESS", 0.0)
    grey = change_intensities(torch.full((4, 1, 12, 12, 12), 0.5), generator())
    assert grey.std() == pytest.approx(NOISE, rel=0.05) and grey.mean() == pytest.approx(
        0.5, abs=0.01
    )
    assert change_intensities(torch.zeros(4, 1, 12, 12, 12), generator()).mean() < NOISE / 2


def test_vectors_are_interpolated_between_the_middles_of_voxels():
    maps = torch.randn(2, 6, 4, 5, 7, generator=generator())
    places = torch.rand(2, 30, 3, generator=generator(1)) * 2 - 1
    found = vectors_at(maps, places)
    for m, p, vectors in zip(maps.numpy(), places.numpy(), found):
        index = ((p + 1) / 2 * m.shape[1:] - 0.5).T  # (3, K), z y x
        expected = np.stack(
            [ndimage.map_coordinates(channel, index, order=1, mode="nearest") for channel in m], 1
        )
        expected /= np.linalg.norm(expected, axis=1, keepdims=True)
        assert np.allclose(vectors.numpy(), expected, atol=1e-5)


def test_a_place_names_its_voxel_in_z_y_x_order():
    maps = torch.zeros(1, 2, 2, 3, 4)
    maps[:, 0], maps[:, 1, 1, 0, 2] = 1, 1  # voxel (1, 0, 2) alone is (1, 1)
    place = (torch.tensor([1, 0, 2]) + 0.5) / torch.tensor([2, 3, 4]) * 2 - 1
    others = (torch.tensor([[0, 0, 2], [1, 1, 2], [1, 0, 1]]) + 0.5) / torch.tensor(
        [2, 3, 4]
    ) * 2 - 1
    found = vectors_at(maps, torch.cat([place[None], others])[None])[0]
    assert torch.allclose(found[0], torch.tensor([0.5, 0.5]).sqrt())
    assert torch.allclose(found[1:], torch.tensor([1.0, 0.0]))


def test_locate_undoes_the_placement():
    matrix, centre = (
        torch.tensor([[[0.0, 2.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]]),
        torch.tensor([[5.0, 6.0, 7.0]]),
    )
    patch = Patches(
        torch.zeros(1, 1, 2, 2, 2),
        matrix,
        centre,
        torch.zeros(1, 3, *NODES),
        torch.tensor([20.0, 40.0, 10.0]),
    )
    # The patch's point (1, 2, 3) mm shows (2 * 2, -1, 3) mm from the centre.
    assert torch.allclose(
        patch.locate(torch.tensor([[[9.0, 5.0, 10.0]]])), torch.tensor([[[0.1, 0.1, 0.6]]])
    )


def test_locate_undoes_the_bending():
    """Displacements are interpolated by scipy; locate finds the place that shows a point."""
    drawn = draw_patches(torch.zeros(3, 1, 12, 30, 30), (10, 24, 24), (5.0, 5.0, 5.0), generator(2))
    places = torch.rand(3, 50, 3, generator=generator(3)) * 2 - 1
    shown = []
    for place, bending, matrix, centre in zip(
        places.numpy(), drawn.bending.numpy(), drawn.matrix.numpy(), drawn.centre.numpy()
    ):
        index = ((place + 1) / 2 * NODES - 0.5).T
        bent = np.stack(
            [ndimage.map_coordinates(b, index, order=1, mode="nearest") for b in bending], 1
        )
        shown.append((place * drawn.size.numpy() / 2 + bent) @ matrix.T + centre)
    voxels = (
        (drawn.locate(torch.from_numpy(np.stack(shown)).float()) - places).abs()
        * torch.tensor([10, 24, 24])
        / 2
    )
    assert voxels.max() < 0.05
