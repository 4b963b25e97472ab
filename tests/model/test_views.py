import itertools
import math

import numpy as np
import pytest
import torch
from monai.transforms import Affine
from scipy.ndimage import map_coordinates

from alice_nnunet.model.pretraining.settings import AliceSettings
from alice_nnunet.model.views import (
    Augmentation,
    Views,
    at_places,
    augment,
    draw_augmentation,
    draw_parts,
    enlarge,
    make_views,
    token_middles,
    vectors_at,
)


def drawn(
    angles=(0.0, 0.0, 0.0), scale=1.0, flips=(1, 1, 1), factor=1.0, shift=0.0
) -> Augmentation:
    return Augmentation(
        torch.tensor([angles]),
        torch.tensor([scale]),
        torch.tensor([flips]).float(),
        torch.tensor([factor]),
        torch.tensor([shift]),
    )


def test_nothing_drawn_changes_nothing():
    crop = torch.rand(1, 2, 8, 10, 12)
    assert torch.allclose(augment(crop, drawn(), (3, 1, 2)), crop, atol=1e-5)


@pytest.mark.parametrize("axis", range(3))
def test_flips_mirror_the_named_axis(axis):
    crop = torch.rand(1, 1, 8, 10, 12)
    flips = [1, 1, 1]
    flips[axis] = -1
    assert torch.allclose(
        augment(crop, drawn(flips=flips), (3, 1, 2)), crop.flip(axis + 2), atol=1e-5
    )


def test_intensity_is_affine():
    crop = torch.rand(1, 1, 8, 8, 8)
    assert torch.allclose(
        augment(crop, drawn(factor=1.1, shift=-0.05), (1, 1, 1)), crop * 1.1 - 0.05, atol=1e-5
    )


def test_a_right_angle_about_z_is_rot90_where_voxels_are_square():
    crop = torch.rand(1, 1, 4, 8, 8)
    turned = augment(crop, drawn(angles=(math.pi / 2, 0.0, 0.0)), (5.0, 1.5, 1.5))
    assert any(torch.allclose(turned, crop.rot90(k, (3, 4)), atol=1e-4) for k in (1, 3))


def test_rotation_and_scale_equal_monai():
    torch.manual_seed(0)
    crop = torch.nn.functional.avg_pool3d(torch.rand(1, 1, 12, 14, 16), 3, 1, 1)
    angles = (0.4, -0.2, 0.3)
    ours = augment(crop, drawn(angles=angles, scale=1.2), (2.0, 2.0, 2.0))

    # Written for MONAI, whose matrix acts on (z, y, x) coordinates
    cz, cy, cx = (math.cos(a) for a in angles)
    sz, sy, sx = (math.sin(a) for a in angles)
    about_z = torch.tensor([[1, 0, 0], [0, cz, sz], [0, -sz, cz]])
    about_y = torch.tensor([[cy, 0, -sy], [0, 1, 0], [sy, 0, cy]])
    about_x = torch.tensor([[cx, sx, 0], [-sx, cx, 0], [0, 0, 1]])

    matrix = torch.eye(4)
    matrix[:3, :3] = about_z @ about_y @ about_x / 1.2
    theirs = Affine(affine=matrix, padding_mode="zeros", mode="bilinear", image_only=True)(crop[0])
    assert torch.allclose(ours[0], torch.as_tensor(theirs), atol=1e-4)


def test_rotation_is_in_mm():
    """A ball of 6 mm stays a ball of 6 mm where voxels are 3 x 1 x 1 mm."""
    z, y, x = torch.meshgrid(
        torch.arange(-7.5, 8) * 3, torch.arange(-23.5, 24), torch.arange(-23.5, 24), indexing="ij"
    )
    ball = torch.sigmoid(20 - (z**2 + y**2 + x**2).sqrt())[None, None]

    turn = drawn(angles=(0.5, 0.4, -0.6))
    right = augment(ball, turn, (3.0, 1.0, 1.0))
    wrong = augment(ball, turn, (1.0, 1.0, 1.0))
    assert (right - ball).abs().mean() < 0.01 < (wrong - ball).abs().mean()


def test_draws_are_in_range_and_from_the_generator():
    many = draw_augmentation(4000, torch.Generator().manual_seed(0))
    largest = many.angles.abs().amax(0).rad2deg()
    assert (largest <= torch.tensor([30.0, 15.0, 15.0]) + 1e-4).all()
    assert many.scale.min() >= 0.8 and many.scale.max() <= 1.25
    assert many.scale.log().mean().abs() < 0.02
    assert set(many.flips.unique().tolist()) == {-1, 1} and many.flips.mean().abs() < 0.05

    again = draw_augmentation(4000, torch.Generator().manual_seed(0))
    assert torch.equal(many.angles, again.angles) and torch.equal(many.flips, again.flips)


def views_of(crops: torch.Tensor, method: AliceSettings, rank: int = 0, world: int = 1) -> Views:
    generator = torch.Generator().manual_seed(0)
    return make_views(crops, (16, 16, 16), (3.0, 3.0, 3.0), method, generator, rank, world)


def test_views_are_the_same_however_a_batch_is_divided():
    crops = torch.rand(4, 1, 32, 32, 32)
    method = AliceSettings(
        dv_by="crop",
        weight_an=0,
        online_flips=True,
        online_intensity=0.1,
        online_part=0.6,
        target_mask_ratio=0.5,
    )

    whole = views_of(crops, method)
    parts = [views_of(crops[:2], method, 0, 2), views_of(crops[2:], method, 1, 2)]
    for name in ("online", "keep", "masked", "target", "target_keep", "moved", "places"):
        together = torch.cat([getattr(part, name) for part in parts])
        assert torch.equal(getattr(whole, name), together), name


def test_views_hide_the_online_view_and_augment_the_target():
    crops = torch.rand(3, 1, 32, 32, 32)

    views = views_of(crops, AliceSettings())
    assert torch.equal(views.online, crops) and views.keep.shape == (3, 2)
    assert not torch.allclose(views.target, crops) and views.target.shape == crops.shape
    assert (views.masked.sum(1) == 6).all() and views.target_keep is None

    flipping = AliceSettings(dv_by="crop", weight_an=0, online_flips=True, target_mask_ratio=0.5)
    flipped = views_of(crops, flipping)
    assert flipped.target_keep.shape == (3, 4) and not torch.equal(flipped.online, crops)
    assert torch.allclose(flipped.online.sum((2, 3, 4)), crops.sum((2, 3, 4)), rtol=1e-4)


def test_a_light_change_of_online_intensities_is_an_option_that_changes_no_other_number():
    crops = torch.rand(16, 2, 32, 32, 32)
    crops[:, :, :16] = 0  # air
    plain = views_of(crops, AliceSettings())

    generator = torch.Generator().manual_seed(0)
    changing = AliceSettings(online_intensity=0.1)
    light = make_views(crops, (16,) * 3, (3.0,) * 3, changing, generator, windowed=[1])
    for name in ("keep", "masked", "moved"):
        assert torch.equal(getattr(plain, name), getattr(light, name)), name

    # Each crop has a factor and a shift of its own: read them off a line through its voxels.
    shifts = light.online[:, 0, 0, 0, 0]
    factors = (light.online[:, 0, -1, 0, 0] - shifts) / crops[:, 0, -1, 0, 0]
    assert ((factors - 1).abs() <= 0.1001).all() and factors.std() > 0.03
    assert (shifts.abs() <= 0.1001).all() and shifts.std() > 0.03

    by_hand = crops * factors.view(-1, 1, 1, 1, 1) + shifts.view(-1, 1, 1, 1, 1)
    assert torch.allclose(light.online[:, 0], by_hand[:, 0], atol=1e-5)
    assert (light.online[:, 1, :16] == 0).all()
    assert torch.allclose(light.online[:, 1, 16:], by_hand[:, 1, 16:].clamp(0, 1), atol=1e-5)


def test_target_flips_are_an_option_that_changes_no_other_number():
    crops = torch.rand(16, 1, 32, 32, 32)

    def made(**options):
        generator = torch.Generator().manual_seed(0)
        return make_views(crops, (16, 16, 16), (3.0, 3.0, 3.0), AliceSettings(**options), generator)

    flipped = made(target_flips=True)
    upright = made()
    assert torch.equal(flipped.keep, upright.keep)
    assert torch.equal(flipped.moved.abs(), upright.moved.abs())
    assert (torch.linalg.det(flipped.moved) < 0).any()
    assert (upright.moved.diagonal(dim1=1, dim2=2) > 0).all()


@pytest.mark.parametrize("axes", ["x", "zy", "zyx"])
def test_views_are_flipped_along_the_named_axes_alone(axes):
    crops = torch.rand(32, 1, 32, 32, 32)
    options = {"target_flips": True, "online_flips": True, "dv_by": "crop", "weight_an": 0}
    views = views_of(crops, AliceSettings(**options, flip_axes=axes))

    mirrored = (views.moved.diagonal(dim1=1, dim2=2).flip(1) < 0).any(0)  # (z, y, x)
    assert [bool(m) for m in mirrored] == [axis in axes for axis in "zyx"]

    for crop, view in zip(crops, views.online):
        alike = [
            torch.equal(view, crop.flip(dims) if dims else crop)
            for dims in ([a + 1 for a in chosen] for chosen in subsets([*map("zyx".index, axes)]))
        ]
        assert sum(alike) == 1


def subsets(items: list[int]) -> list[tuple[int, ...]]:
    return [c for n in range(len(items) + 1) for c in itertools.combinations(items, n)]


def test_a_part_is_the_crop_between_its_voxels():
    crop = torch.rand(1, 1, 6, 8, 10)
    edge = torch.tensor([0.6])
    middle = torch.tensor([[0.3, -0.2, 0.1]])  # (x, y, z)

    # Voxel i of n lies at (i + 0.5) / n * 2 - 1 in half sizes.
    along = []
    for n, offset in zip((6, 8, 10), middle[0].flip(0).tolist()):
        in_view = (np.arange(n) + 0.5) / n * 2 - 1
        in_crop = in_view * 0.6 + offset
        along.append((in_crop + 1) / 2 * n - 0.5)
    voxels = np.meshgrid(*along, indexing="ij")
    expected = map_coordinates(crop[0, 0].numpy(), voxels, order=1, mode="nearest")
    np.testing.assert_allclose(enlarge(crop, edge, middle)[0, 0], expected, atol=1e-5)


def test_parts_lie_in_their_crops():
    edge, middle = draw_parts(2000, 0.5, torch.Generator().manual_seed(0))
    assert edge.min() >= 0.5 and edge.max() <= 1 and 0.74 < edge.mean() < 0.76
    assert (middle.abs() <= (1 - edge)[:, None] + 1e-6).all()
    assert (middle.abs() > 0.9 * (1 - edge)[:, None]).any(0).all()


def coordinates(size: tuple[int, int, int]) -> torch.Tensor:
    """Crops whose three channels say where a voxel is, (1, 3, D, H, W), (x, y, z) in half sizes."""
    return token_middles(size).T.reshape(1, 3, *size)


def test_places_say_what_a_part_shows():
    size = (32, 48, 64)
    crops = coordinates(size).repeat(8, 1, 1, 1, 1)
    views = views_of(crops, AliceSettings(online_part=0.5))
    assert not torch.equal(views.online, crops) and torch.equal(
        views.target, views_of(crops, AliceSettings()).target
    )

    shown = torch.nn.functional.avg_pool3d(views.online, 16)  # mean of each token
    inside = views.places.abs().amax(-1) < 0.6  # tokens that reach no border
    assert inside.any(1).all()
    difference = shown.flatten(2).mT - views.places
    assert difference[inside].abs().max() < 1e-4


def test_tokens_are_read_at_the_places_of_a_part():
    grid = (4, 5, 6)
    matrix = torch.tensor([[[0.9, 0.1, 0.0], [-0.1, 1.1, 0.0], [0.0, 0.0, -1.0]]])
    places = token_middles(grid)[None] * 0.5 + torch.tensor([0.1, 0.2, -0.1])

    tokens = token_middles(grid)[None]  # of the view: each says where it is
    read, shown = at_places(tokens, matrix, grid, places)
    expected = torch.linalg.inv(matrix[0]) @ places[0].T
    assert shown.all() and torch.allclose(read[0], expected.T, atol=1e-5)


def test_vectors_at_places_are_those_around_them_in_the_body():
    grid = (4, 4, 4)
    middles = token_middles(grid)
    vectors = middles[None] + 5  # linear
    places = middles[None] * 0.6 + torch.tensor([0.2, -0.2, 0.1])
    assert torch.equal(vectors_at(vectors, None, grid), vectors)
    assert torch.allclose(vectors_at(vectors, places, grid), places + 5, atol=1e-5)

    outside = middles[:, 0] < 0  # half of the crop is air, along x
    ones = torch.ones(1, 64, 2)
    ones[:, outside] = 0
    read = vectors_at(ones, places, grid)
    in_air = places[0, :, 0] < -1e-3
    assert in_air.any() and not read[0, in_air].any()
    assert torch.allclose(read[0, places[0, :, 0] > 1e-3], torch.ones(2), atol=1e-5)


def test_windowed_channels_stay_in_their_window_and_air_stays_at_its_floor():
    crop = torch.rand(1, 2, 8, 8, 8)
    crop[:, :, :4] = 0  # air

    view = augment(crop, drawn(factor=1.1, shift=0.1), (1, 1, 1), windowed=[1])
    by_hand = crop * 1.1 + 0.1
    assert torch.allclose(view[:, 0], by_hand[:, 0], atol=1e-5)
    assert (view[:, 1, :4] == 0).all()
    assert torch.allclose(view[:, 1, 4:], by_hand[:, 1, 4:].clamp(max=1), atol=1e-5)

    darker = augment(crop, drawn(shift=-0.1), (1, 1, 1), windowed=[0, 1])
    assert darker.min() == 0 and (by_hand > 1).any()


def test_beyond_the_crop_lies_air_in_windowed_channels():
    crop = torch.ones(1, 1, 8, 8, 8) / 2
    view = augment(crop, drawn(scale=0.5, shift=0.1), (1, 1, 1), windowed=[0])
    assert torch.allclose(view[0, 0, 3:5, 3:5, 3:5], torch.tensor(0.6))
    assert view[0, 0, 0].abs().max() == 0
