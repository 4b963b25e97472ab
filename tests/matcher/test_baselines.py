import numpy as np
import pytest

from alice_nnunet.data.body import Body
from alice_nnunet.data.volumes import Volume
from alice_nnunet.matcher.baselines import match_by_body


def volume(size, start, stop) -> Volume:
    cells = np.zeros([-(-n // 2) for n in size], bool)
    cells[tuple(slice(a // 2, -(-b // 2)) for a, b in zip(start, stop))] = True
    return Volume(
        "case",
        np.zeros((1, *size), np.float32),
        (3.0, 1.0, 2.0),
        Body(cells, (2, 2, 2), (start, stop), size),
    )


def test_the_same_share_of_the_box():
    query, key = (
        volume((40, 60, 80), (10, 20, 20), (30, 40, 60)),
        volume((30, 30, 30), (0, 10, 4), (10, 20, 24)),
    )
    assert match_by_body((20, 30, 40), query, key).point == (5, 15, 14)
    assert match_by_body((10, 20, 20), query, key).point == (0, 10, 4)
    assert match_by_body((29, 39, 59), query, key).point == (9, 19, 23)
    assert match_by_body((20, 30, 40), query, key).score == 1


def test_equal_volumes_match_every_point_with_itself():
    body = volume((40, 60, 80), (10, 20, 20), (30, 40, 60))
    rng = np.random.default_rng(0)
    for _ in range(50):
        point = body.body.random_point(rng)
        assert match_by_body(point, body, body).point == point


@pytest.mark.parametrize("point", [(0, 0, 0), (39, 59, 79)])
def test_a_match_in_the_air_scores_zero(point):
    query, key = (
        volume((40, 60, 80), (10, 20, 20), (30, 40, 60)),
        volume((30, 30, 30), (10, 10, 10), (20, 20, 20)),
    )
    assert match_by_body(point, query, key).score == 0
