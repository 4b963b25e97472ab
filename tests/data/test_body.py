import numpy as np
import pytest

from alice_nnunet.data.body import Body, cells_to_voxels, fill_plane, find_body, share_of_cells

SPACING = (4.0, 4.0, 4.0)  # mm; a cell is 2 voxels


def cylinder(size, centre, radii) -> np.ndarray:
    """An elliptic cylinder along z, bool (Z, Y, X)."""
    y, x = np.ogrid[: size[1], : size[2]]
    plane = ((y - centre[0]) / radii[0]) ** 2 + ((x - centre[1]) / radii[1]) ** 2 <= 1
    return np.broadcast_to(plane, size).copy()


@pytest.fixture
def chest() -> np.ndarray:
    """A trunk with two lungs, on a table, with a stray lump in a corner."""
    inside = cylinder((20, 60, 80), (30, 40), (18, 28))
    inside &= ~cylinder(inside.shape, (30, 28), (11, 8)) & ~cylinder(
        inside.shape, (30, 52), (11, 8)
    )
    inside[:, 9:11, 5:75] = True  # the table, 8 mm thick, 2 voxels under the back
    inside[:, 11:13, 38:42] = True  # touches the back
    inside[:4, 54:60, 0:6] = True
    return inside


def test_body_is_the_trunk_with_its_lungs_and_without_table_and_lump(chest):
    body = find_body(chest, SPACING)
    trunk = cylinder(chest.shape, (30, 40), (18, 28))
    found = cells_to_voxels(body.cells, body.cell, body.size)
    assert (found & trunk).sum() / (found | trunk).sum() > 0.9
    assert body.contains((10, 30, 28)) and body.contains((10, 30, 52))
    assert not body.contains((1, 57, 3)) and not body.contains((10, 9, 10))


def test_box_is_tight(chest):
    start, stop = find_body(chest, SPACING).box
    assert start[0] == 0 and stop[0] == 20
    assert (
        np.abs(np.subtract(start[1:], (12, 12))).max() <= 1
        and np.abs(np.subtract(stop[1:], (49, 69))).max() <= 1
    )


def test_box_does_not_depend_on_what_encloses_it():
    small = np.ones((8, 10, 12), bool)
    padded = np.pad(small, ((6, 2), (4, 8), (10, 6)))
    assert find_body(small, SPACING).box == ((0, 0, 0), (8, 10, 12))
    assert find_body(padded, SPACING).box == ((6, 4, 10), (14, 14, 22))


def test_random_points_lie_in_the_body_and_everywhere_in_it(chest):
    body = find_body(chest[:, :59, :79], SPACING)  # the last cell along y and x sticks out
    rng = np.random.default_rng(0)
    points = [body.random_point(rng) for _ in range(4000)]
    assert all(body.contains(point) for point in points)
    centre = np.argwhere(cells_to_voxels(body.cells, body.cell, body.size)).mean(0)
    assert np.abs(np.mean(points, 0) - centre).max() < 1
    again = np.random.default_rng(0)
    assert [body.random_point(again) for _ in range(5)] == points[:5]


def test_points_outside_the_volume_are_not_in_the_body():
    body = find_body(np.ones((7, 7, 7), bool), SPACING)
    assert body.contains((6, 6, 6))
    assert not body.contains((7, 6, 6)) and not body.contains((-1, 0, 0))


def test_lung_cut_open_by_the_field_of_view_is_filled_and_outside_air_is_not():
    plane = np.ones((9, 9), bool)
    plane[3:6, 0:4] = False  # reaches one edge
    plane[0:2, 6:9] = False  # reaches a corner
    filled = fill_plane(plane)
    assert filled[3:6, 0:4].all() and not filled[0:2, 6:9].any()
    assert not fill_plane(np.zeros((4, 4), bool)).any()


def test_share_counts_only_voxels_of_the_volume():
    inside = np.zeros((5, 4, 4), bool)
    inside[4] = True
    np.testing.assert_array_equal(share_of_cells(inside, (2, 2, 4))[:, 0, 0], [0, 0, 1])
    rng = np.random.default_rng(1)
    inside = rng.random((7, 9, 11)) > 0.5
    share = share_of_cells(inside, (3, 4, 5))
    assert share[1, 2, 0] == pytest.approx(inside[3:6, 8:12, 0:5].mean())


def test_plain_dict_and_back(chest):
    body = find_body(chest, (4.0, 2.0, 2.0))
    copy = Body.from_dict(body.to_dict())
    assert (
        (copy.cell, copy.box, copy.size)
        == (body.cell, body.box, body.size)
        == ((2, 4, 4), body.box, chest.shape)
    )
    np.testing.assert_array_equal(copy.cells, body.cells)


def test_nothing_solid_is_an_error():
    speck = np.zeros((20, 20, 20), bool)
    speck[3, 3, 3] = True
    with pytest.raises(ValueError, match="no body"):
        find_body(speck, SPACING)


def test_real_ct_has_a_body_with_air_around_it(real_ct):
    hu = np.asarray(real_ct.dataobj).T
    body = find_body(hu > -120, tuple(map(float, real_ct.header.get_zooms()[::-1])))
    found = cells_to_voxels(body.cells, body.cell, body.size)
    assert 0.3 < found.mean() < 0.95
    assert (hu[found] > -120).mean() > 0.6 and (hu[~found] > -120).mean() < 0.2


@pytest.mark.parametrize("axes", [(2,), (0, 1)])
def test_a_flipped_body_is_found_in_the_flipped_volume(chest, axes):
    spacing = (2.5, 1.5, 1.5)
    body = find_body(chest, spacing)
    flipped = body.flipped(axes)
    expected = find_body(np.flip(chest, axes), spacing)

    assert flipped.size == expected.size and flipped.cell == expected.cell
    assert (flipped.cells != expected.cells).mean() < 0.02
    for axis in range(3):
        start, stop = (corner[axis] for corner in body.box)
        ends = (body.size[axis] - stop, body.size[axis] - start) if axis in axes else (start, stop)
        assert tuple(corner[axis] for corner in flipped.box) == ends
