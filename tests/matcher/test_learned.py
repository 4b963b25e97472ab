"""Two people whose vectors are the same function of the place in the body, on different grids."""

import numpy as np
import pytest

from alice_nnunet.data.body import Body
from alice_nnunet.data.volumes import Volume
from alice_nnunet.errors import UserError
from alice_nnunet.matcher.embedding import Embedding, pack
from alice_nnunet.matcher.index import save_embedding
from alice_nnunet.matcher.learned import (
    EmbeddingMatcher,
    match_millimetres,
    opened,
    return_distance,
)
from tests.matcher.fields import field_embedding

# size in nodes, first node and step in mm, where the volume's corner lies in the body
QUERY = ((20, 26, 28), (8.0, 5.0, 12.0), (6.0, 6.0, 6.0), np.array([100.0, 40.0, 60.0]))
KEY = ((28, 26, 44), (3.0, 9.0, 4.0), (5.0, 7.0, 4.0), np.array([85.0, 30.0, 70.0]))
ALIGNED = (
    (20, 26, 28),
    (2.0, 23.0, 0.0),
    (6.0, 6.0, 6.0),
    np.array([112.0, 28.0, 78.0]),
)
ELSEWHERE = ((20, 26, 28), (8.0, 5.0, 12.0), (6.0, 6.0, 6.0), np.array([1000.0, -900.0, 1200.0]))


@pytest.fixture(scope="module")
def query():
    return field_embedding(*QUERY)


@pytest.fixture(scope="module")
def key():
    return field_embedding(*KEY)


def points_in_both(number: int, first, second) -> np.ndarray:
    """Millimetres in the first volume of random points that both grids reach."""
    (size, origin, step, body), (other_size, other_origin, other_step, other_body) = first, second
    low = np.maximum(np.array(origin) + body, np.array(other_origin) + other_body) - body
    high = (
        np.minimum(
            np.array(origin) + (np.array(size) - 1) * step + body,
            np.array(other_origin) + (np.array(other_size) - 1) * other_step + other_body,
        )
        - body
    )
    reach = 43.0  # a point's surroundings are in view too
    assert (high - low > 2 * reach + 20).all()
    return np.random.default_rng(0).uniform(low + reach, high - reach, (number, 3))


def test_on_grids_in_step_the_match_is_exact_between_nodes_too(query):
    aligned = field_embedding(*ALIGNED)
    for point in points_in_both(50, QUERY, ALIGNED):
        match, score = match_millimetres(point, query, aligned)
        assert np.allclose(
            match, point + QUERY[3] - ALIGNED[3], atol=1e-6
        ) and score == pytest.approx(1, abs=0.01)


def test_spacing_and_cropping_of_both_are_honoured(query, key):
    for point in points_in_both(100, QUERY, KEY):
        match, score = match_millimetres(point, query, key)
        assert (np.abs(match - (point + QUERY[3] - KEY[3])) < 0.75 * np.array(KEY[2])).all()
        assert 0.9 < score <= 1


def test_errors_are_those_of_a_grid(query, key):
    """No bias, and no more than evenly spread over a node's own cell."""
    points = points_in_both(150, QUERY, KEY)
    errors = (
        np.array([match_millimetres(p, query, key)[0] - (p + QUERY[3] - KEY[3]) for p in points])
        / KEY[2]
    )
    assert (np.abs(errors.mean(0)) < 0.1).all() and (errors.std(0) < 0.4).all()


def test_another_region_scores_low(query, key):
    nowhere = field_embedding(*ELSEWHERE)
    points = points_in_both(50, QUERY, KEY)
    low = [match_millimetres(p, query, nowhere)[1] for p in points]
    assert max(low) < 0.7 and np.mean(low) < 0.5
    assert min(match_millimetres(p, query, key)[1] for p in points) > 0.9


def test_a_match_leads_back(query, key):
    for point in points_in_both(50, QUERY, KEY):
        match, _ = match_millimetres(point, query, key)
        back = match_millimetres(match, key, query)[0]
        assert return_distance(point, match, query, key) == pytest.approx(
            np.linalg.norm(back - point)
        )
        assert (np.abs(back - point) < 0.75 * (np.array(QUERY[2]) + KEY[2])).all()  # rounded twice


def directions(degrees: dict) -> Embedding:
    """Nodes 1 mm apart that are 0, but for the nodes x of degrees, in the middle of a block.

    They have the unit vector of their angle.
    """
    vectors = np.zeros((2, 3, 3, 15))
    for x, angle in degrees.items():
        vectors[:, 1, 1, x] = np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))
    return pack(vectors, (0.5, 0.5, 0.5), (1.0, 1.0, 1.0))


TWO_PLACES, ONE_PLACE = (
    {1: 0, 13: 30},
    {7: 40},
)  # the place of the second volume is more like the second of the first


def test_a_match_that_is_more_like_another_place_leads_there():
    first, second = directions(TWO_PLACES), directions(ONE_PLACE)
    match, score = match_millimetres(np.array([1.5, 1.5, 1.7]), first, second)
    assert match.tolist() == pytest.approx([1.5, 1.5, 7.7]) and score == pytest.approx(
        np.cos(np.deg2rad(40)), abs=0.01
    )
    assert return_distance(np.array([1.5, 1.5, 1.7]), match, first, second) == pytest.approx(12)
    match, score = match_millimetres(np.array([1.5, 1.5, 13.5]), first, second)
    assert return_distance(np.array([1.5, 1.5, 13.5]), match, first, second) == pytest.approx(0)


def volume(name: str, spacing) -> Volume:
    """A volume of which the matcher needs name and spacing."""
    body = Body(
        np.ones((1, 1, 1), bool), (200, 200, 200), ((0, 0, 0), (200, 200, 200)), (200, 200, 200)
    )
    return Volume(name, np.zeros((1, 1, 1, 1), np.float32), spacing, body)


QUERY_SPACING, KEY_SPACING = (3.0, 1.5, 0.8), (1.2, 2.0, 1.0)


@pytest.fixture
def folder(tmp_path, query, key):
    for name, embedding in (
        ("query", query),
        ("key", key),
        ("two", directions(TWO_PLACES)),
        ("one", directions(ONE_PLACE)),
    ):
        save_embedding(tmp_path, name, embedding, {})
    opened.cache_clear()
    yield tmp_path
    opened.cache_clear()


def voxels_in_both(number: int) -> list[tuple[int, int, int]]:
    return [tuple(map(int, p)) for p in points_in_both(number, QUERY, KEY) // QUERY_SPACING]


def test_the_matcher_answers_in_voxels(folder):
    matcher, first, second = (
        EmbeddingMatcher(folder),
        volume("query", QUERY_SPACING),
        volume("key", KEY_SPACING),
    )
    for point in voxels_in_both(50):
        match = matcher(point, first, second)
        there = ((np.array(point) + 0.5) * QUERY_SPACING + QUERY[3] - KEY[3]) / KEY_SPACING - 0.5
        assert all(type(i) is int for i in match.point) and match.score > 0.9
        assert (np.abs(match.point - there) < 0.75 * np.array(KEY[2]) / KEY_SPACING + 0.5).all()


def test_a_volume_matches_itself_exactly(folder):
    matcher, one = EmbeddingMatcher(folder), volume("query", QUERY_SPACING)
    for point in voxels_in_both(20):
        assert matcher(point, one, one).point == point


def test_a_match_that_does_not_lead_back_scores_zero(folder):
    two, one = volume("two", (1.0, 1.0, 1.0)), volume("one", (1.0, 1.0, 1.0))
    for point, strict, lenient in [((1, 1, 1), 0, 0.77), ((1, 1, 13), 0.98, 0.98)]:
        for max_return, score in [(11.9, strict), (12.1, lenient), (None, lenient)]:
            match = EmbeddingMatcher(folder, max_return)(point, two, one)
            assert match.point == (1, 1, 7) and match.score == pytest.approx(score, abs=0.01)


def test_true_matches_survive_the_check(folder):
    plain, checked = EmbeddingMatcher(folder), EmbeddingMatcher(folder, max_return=12.0)
    first, second = volume("query", QUERY_SPACING), volume("key", KEY_SPACING)
    assert all(checked(p, first, second) == plain(p, first, second) for p in voxels_in_both(20))
    assert all(
        EmbeddingMatcher(folder, max_return=1e-9)(p, first, first).score > 0.99
        for p in voxels_in_both(5)
    )


def test_files_are_opened_once(folder):
    matcher, first, second = (
        EmbeddingMatcher(folder),
        volume("query", QUERY_SPACING),
        volume("key", KEY_SPACING),
    )
    for point in voxels_in_both(5):
        matcher(point, first, second)
    assert opened.cache_info().misses == 2


def test_a_case_without_embedding_is_named(folder):
    with pytest.raises(UserError, match=r"embedding of nobody .*alice-embed"):
        EmbeddingMatcher(folder)(
            (5, 5, 5), volume("query", QUERY_SPACING), volume("nobody", KEY_SPACING)
        )


def test_the_vectors_of_tokens_are_those_of_the_nodes_nearest_to_their_middles(query, tmp_path):
    save_embedding(tmp_path, "person", query, {})
    volume = Volume("person", np.zeros((1, 40, 60, 60), np.float32), (3.0, 2.0, 2.5), None)
    point, size, grid = (18, 33, 30), (8, 12, 16), (2, 3, 2)
    found = EmbeddingMatcher(tmp_path).vectors_of_tokens(volume, point, size, grid)
    assert found.shape == (12, query.blocks.shape[-1]) and found.dtype == np.float32
    number = 0
    for z in range(2):
        for y in range(3):
            for x in range(2):
                corner = np.array(point) - (4, 6, 8)
                inside = np.array((4 * z + 2, 4 * y + 2, 8 * x + 4))  # tokens of (4, 4, 8) voxels
                middle = (corner + inside) * np.array(volume.spacing)  # mm
                assert np.allclose(
                    found[number], query.vectors(query.position(query.nearest(middle))[None])[0]
                )
                number += 1
    assert len({row.tobytes() for row in found}) == 12


def test_outside_the_volume_the_vectors_are_zero(query, tmp_path):
    save_embedding(tmp_path, "person", query, {})
    volume = Volume("person", np.zeros((1, 40, 60, 60), np.float32), (3.0, 2.0, 2.5), None)
    assert (
        not EmbeddingMatcher(tmp_path)
        .vectors_of_tokens(volume, (-50, 33, 30), (8, 12, 16), (2, 3, 2))
        .any()
    )
