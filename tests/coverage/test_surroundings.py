import numpy as np
import pytest

from alice_nnunet.coverage.surroundings import best_scores, coarse_scores, random_surroundings
from alice_nnunet.matcher.embedding import BLOCK, NEIGHBOURS, pack
from alice_nnunet.matcher.learned import match_millimetres


def field(seed: int, size=(17, 20, 23), channels=8):
    """A body of unit vectors, smooth enough to have neighbourhoods, with air in a corner."""
    rng = np.random.default_rng(seed)
    coarse = rng.normal(size=(channels, 6, 6, 6))
    vectors = coarse.repeat(4, 1).repeat(4, 2).repeat(4, 3)[:, : size[0], : size[1], : size[2]]
    vectors = vectors + 0.3 * rng.normal(size=vectors.shape)
    vectors /= np.linalg.norm(vectors, axis=0)
    vectors[:, :, :5, :5] = 0
    return pack(vectors.astype(np.float32), (4.0, 5.0, 6.0), (10.0, 9.0, 11.0))


def test_many_places_score_as_each_alone():
    query = field(0)
    key = field(1, size=(12, 25, 14))
    wanted = random_surroundings(query, 30, np.random.default_rng(0))
    together = coarse_scores(key, wanted)

    for place in range(len(wanted)):
        vectors = wanted.vectors[place]
        asked = vectors.any(1)
        norm = key.norm(NEIGHBOURS[asked])
        alone = key.coarse_scores(NEIGHBOURS[asked], vectors[asked], norm) * key.scale
        np.testing.assert_allclose(together[:, place], alone.ravel(), rtol=1e-4, atol=1e-5)


def test_a_match_scores_no_less():
    query = field(0)
    key = field(1)
    wanted = random_surroundings(query, 20, np.random.default_rng(1))
    scores, _ = best_scores(key, wanted)
    for place, score in zip(wanted.positions, scores):
        assert match_millimetres(place, query, key)[1] >= score - 1e-5


def test_places_are_the_middles_of_different_blocks_of_the_body():
    query = field(0)
    wanted = random_surroundings(query, 10_000, np.random.default_rng(0))
    nodes = (wanted.positions - query.origin) / query.step
    assert np.array_equal(nodes % BLOCK, np.ones_like(nodes))
    assert len({tuple(node) for node in nodes}) == len(wanted) == query.middles.any(1).sum()
    assert np.array_equal(wanted.vectors[:, 13], query.vectors(wanted.positions))


def test_in_its_own_volume_a_place_finds_itself_unless_it_may_not():
    query = field(0)
    wanted = random_surroundings(query, 20, np.random.default_rng(2))
    scores, found = best_scores(query, wanted)
    assert np.array_equal(found, wanted.positions) and scores.min() > 0.95

    far, places = best_scores(query, wanted, not_within=60.0)
    assert (np.linalg.norm(places - wanted.positions, axis=1) > 60).all()
    assert (far < scores).all() and far.min() > -1

    nowhere, _ = best_scores(query, wanted, not_within=1e4)
    assert nowhere == pytest.approx(-1)


def test_a_body_between_the_middles_of_blocks_has_no_places():
    """As that of an accepted fragment may be: nothing can be drawn in it, and no run ends."""
    vectors = np.zeros((8, 5, 9, 9), np.float32)
    vectors[0, 0, 0, 0] = 1
    empty = random_surroundings(
        pack(vectors, (4.0, 5.0, 6.0), (0.0, 0.0, 0.0)), 30, np.random.default_rng(0)
    )
    assert len(empty) == 0 and empty.vectors.shape == (0, len(NEIGHBOURS), 8)
    scores, places = best_scores(field(1), empty)
    assert scores.shape == (0,) and places.shape == (0, 3)
