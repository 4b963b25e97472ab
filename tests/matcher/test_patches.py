import numpy as np
import pytest
import torch
from scipy import ndimage

from alice_nnunet.matcher import patches
from alice_nnunet.matcher.patches import ANGLES, INTENSITY_SCALE, INTENSITY_SHIFT, NOISE, SCALES, Patches, draw_patches, vectors_at

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
    return torch.exp(-(distance / 2.5) ** 2 / 2)[:, None]


def middle_of_brightness(image: torch.Tensor) -> np.ndarray:
    """Where the blob of a patch is, each axis from -1 to 1."""
    bright = (image - image.median()).numpy()
    bright[bright < 0.02] = 0
    return (np.array(ndimage.center_of_mass(bright)) + 0.5) / np.array(image.shape) * 2 - 1


@pytest.mark.parametrize("spacing", SPACINGS, ids=str)
def test_a_point_lies_where_the_picture_shows_it(spacing, monkeypatch):
    monkeypatch.setattr(patches, "NOISE", 0.0)
    crop, size = sizes(spacing)
    points = (torch.rand(12, 3, generator=generator(1)) * 2 - 1) * 20
    drawn = draw_patches(blobs(points, crop, spacing), size, spacing, generator())
    located = drawn.locate(points[:, None])[:, 0]
    voxel = 2 / np.array(size)
    for image, place in zip(drawn.image, located):
        assert (np.abs(middle_of_brightness(image[0]) - place.numpy()) < 0.15 * voxel).all()
    plain = (points - drawn.centre) / (torch.tensor(size) * torch.tensor(spacing) / 2)  # neither turned nor scaled
    assert ((plain - located).abs() / torch.tensor(voxel)).max() > 2


def test_each_axis_turns_and_both_ways_within_the_range():
    """About each axis, the angle that the patch's matrix tells."""
    drawn = draw_patches(torch.zeros(400, 1, 4, 4, 4), (4, 4, 4), (2.0, 2.0, 2.0), generator())
    scale = 1 / torch.linalg.det(drawn.matrix) ** (1 / 3)
    assert SCALES[0] <= scale.min() < 0.85 and 1.2 < scale.max() <= SCALES[1]
    turn = drawn.matrix * scale[:, None, None]
    assert torch.allclose(turn @ turn.mT, torch.eye(3).expand_as(turn), atol=1e-5)
    for axis in range(3):
        a, b = (n for n in range(3) if n != axis)
        angle = torch.atan2(turn[:, b, a] - turn[:, a, b], turn[:, a, a] + turn[:, b, b]).rad2deg()
        assert angle.max() > 0.8 * ANGLES[axis] and angle.min() < -0.8 * ANGLES[axis]
        assert angle.abs().max() < ANGLES[axis] + 2  # the other two turns blur it


def test_the_same_seed_draws_the_same_patches():
    crops = torch.rand(2, 1, 12, 16, 20)
    one, same, other = (draw_patches(crops, (8, 12, 16), (3.0, 2.0, 1.5), generator(seed)) for seed in (3, 3, 4))
    assert all(torch.equal(getattr(one, name), getattr(same, name)) for name in ("image", "matrix", "centre", "size"))
    assert one.image.shape == (2, 1, 8, 12, 16) and not torch.equal(one.image, other.image)
    assert one.size.tolist() == [24.0, 24.0, 24.0]
    going_on = generator(3)
    first, second = (draw_patches(crops, (8, 12, 16), (3.0, 2.0, 1.5), going_on) for _ in range(2))
    assert torch.equal(first.image, one.image) and not torch.equal(second.image, first.image)


def test_two_patches_of_three_quarters_overlap():
    crop, size, spacing = (22, 64, 64), (16, 48, 48), (4.0, 4.0, 4.0)
    points = (torch.rand(1, 2000, 3, generator=generator(9)) * 2 - 1) * torch.tensor(crop) * torch.tensor(spacing) / 2
    blank, drawing = torch.zeros(1, 1, 1, 1, 1).expand(1, 1, *crop), generator()
    for _ in range(8):
        first, second = (draw_patches(blank, size, spacing, drawing) for _ in range(2))
        both = (first.locate(points).abs().amax(2) < 1) & (second.locate(points).abs().amax(2) < 1)
        assert both.float().mean() > 0.05


def test_intensities_are_scaled_shifted_and_noisy():
    """Bright in the middle of the crop, so that every patch has the full value there."""
    crops = torch.ones(200, 1, 12, 12, 12)
    inner = draw_patches(crops, (6, 6, 6), (2.0, 2.0, 2.0), generator()).image[:, 0, 2:4, 2:4, 2:4].flatten(1)
    assert inner.std(1).mean() == pytest.approx(NOISE, rel=0.15)
    largest = INTENSITY_SCALE + INTENSITY_SHIFT
    assert (inner.mean(1) - 1).abs().max() < largest + NOISE
    assert inner.mean(1).max() > 1 + largest / 2 and inner.mean(1).min() < 1 - largest / 2


def test_vectors_are_interpolated_between_the_middles_of_voxels():
    maps = torch.randn(2, 6, 4, 5, 7, generator=generator())
    places = torch.rand(2, 30, 3, generator=generator(1)) * 2 - 1
    found = vectors_at(maps, places)
    for m, p, vectors in zip(maps.numpy(), places.numpy(), found):
        index = ((p + 1) / 2 * m.shape[1:] - 0.5).T                                     # (3, K), z y x
        expected = np.stack([ndimage.map_coordinates(channel, index, order=1, mode="nearest") for channel in m], 1)
        expected /= np.linalg.norm(expected, axis=1, keepdims=True)
        assert np.allclose(vectors.numpy(), expected, atol=1e-5)


def test_a_place_names_its_voxel_in_z_y_x_order():
    maps = torch.zeros(1, 2, 2, 3, 4)
    maps[:, 0], maps[:, 1, 1, 0, 2] = 1, 1                                              # voxel (1, 0, 2) alone is (1, 1)
    place = (torch.tensor([1, 0, 2]) + 0.5) / torch.tensor([2, 3, 4]) * 2 - 1
    others = (torch.tensor([[0, 0, 2], [1, 1, 2], [1, 0, 1]]) + 0.5) / torch.tensor([2, 3, 4]) * 2 - 1
    found = vectors_at(maps, torch.cat([place[None], others])[None])[0]
    assert torch.allclose(found[0], torch.tensor([0.5, 0.5]).sqrt())
    assert torch.allclose(found[1:], torch.tensor([1.0, 0.0]))


def test_locate_undoes_the_placement():
    matrix, centre = torch.tensor([[[0.0, 2.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]]), torch.tensor([[5.0, 6.0, 7.0]])
    patch = Patches(torch.zeros(1, 1, 2, 2, 2), matrix, centre, torch.tensor([20.0, 40.0, 10.0]))
    # The patch's point (1, 2, 3) mm shows (2 * 2, -1, 3) mm from the centre.
    assert torch.allclose(patch.locate(torch.tensor([[[9.0, 5.0, 10.0]]])), torch.tensor([[[0.1, 0.1, 0.6]]]))
