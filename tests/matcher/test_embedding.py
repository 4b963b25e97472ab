import numpy as np
import pytest

from alice_nnunet.matcher.embedding import BLOCK, NEIGHBOURS, SEARCHED, UNSEEN, pack
from tests.matcher.fields import field, field_embedding, nodes_of, vector

ORIGIN, STEP = (10.0, -4.0, 7.0), (6.0, 5.0, 4.0)


def around(embedding, place: np.ndarray) -> np.ndarray:
    """Millimetres of the places that find looks at, (53, 3)."""
    return place + NEIGHBOURS * BLOCK * np.array(embedding.step)


def alike_everywhere(embedding, wanted: np.ndarray) -> np.ndarray:
    """Mean similarity of the surroundings of all nodes, (Z, Y, X); -1 outside the body.

    What the volume does not show above and below counts for UNSEEN.
    """
    size = np.array(embedding.grid) * BLOCK
    every = np.stack([vector(embedding, node) for node in nodes_of(embedding)]).reshape(*size, -1)
    beyond, total, seen = (
        np.pad(every, [(2 * BLOCK, 2 * BLOCK)] * 3 + [(0, 0)]),
        np.zeros(size),
        np.zeros(size[0]),
    )
    for (z, y, x), one in zip((NEIGHBOURS + 2) * BLOCK, wanted):
        total += beyond[z : z + size[0], y : y + size[1], x : x + size[2]] @ one
        seen += beyond[z : z + size[0]].any((1, 2, 3)) * one.any()
    asked = wanted.any(1).sum()
    return np.where(
        every.any(3), total / ((seen + UNSEEN * asked) / (1 + UNSEEN))[:, None, None], -1
    )


@pytest.mark.parametrize("size", [(6, 9, 12), (7, 8, 10), (1, 2, 3)])
def test_packed_vectors_come_back_within_the_rounding(size):
    vectors = np.random.default_rng(0).normal(size=(8, *size)).astype(np.float32)
    embedding = pack(vectors, ORIGIN, STEP)
    assert (
        embedding.blocks.dtype == embedding.middles.dtype == np.int8
        and np.abs(embedding.blocks.astype(int)).max() == 127
    )
    assert embedding.grid == tuple(-(-n // BLOCK) for n in size)
    for node in nodes_of(embedding):
        expected = vectors[(slice(None), *node)] if (node < size).all() else 0
        assert np.abs(vector(embedding, node) - expected).max() <= embedding.scale * 0.501


def test_middles_are_the_vectors_in_the_middle_of_each_block():
    embedding = pack(
        np.random.default_rng(0).normal(size=(8, 6, 9, 12)).astype(np.float32), ORIGIN, STEP
    )
    middles = [node for node in nodes_of(embedding) if (node % BLOCK == BLOCK // 2).all()]
    assert len(middles) == len(embedding.middles) == 2 * 3 * 4
    for node, middle in zip(middles, embedding.middles):
        assert np.array_equal(vector(embedding, node), middle.astype(np.float32) * embedding.scale)


@pytest.mark.parametrize(
    "size", [(18, 21, 24), (5, 4, 7)], ids=["many blocks", "fewer blocks than are searched"]
)
def test_found_is_the_most_similar_of_all_nodes(size):
    embedding, rng = field_embedding(size, ORIGIN, STEP, np.zeros(3)), np.random.default_rng(1)
    assert (len(embedding.middles) > 3 * SEARCHED) == (size[0] == 18)
    for place in rng.uniform(ORIGIN, np.array(ORIGIN) + (np.array(size) - 1) * STEP, (4, 3)):
        wanted = field(around(embedding, place)).T.astype(np.float32)
        wanted[rng.permutation(53)[:9]] = 0
        alike = alike_everywhere(embedding, wanted)
        node, similarity = embedding.find(wanted)
        assert alike[tuple(node)] == pytest.approx(alike.max(), abs=1e-5)
        assert similarity == pytest.approx(min(1, alike.max()), abs=1e-5)


def test_the_similarity_is_that_of_the_vectors_before_rounding():
    embedding, rng = (
        field_embedding((24, 27, 30), ORIGIN, STEP, np.zeros(3)),
        np.random.default_rng(1),
    )
    inner = (2 * BLOCK + 1) * np.array(STEP)
    for place in rng.uniform(
        ORIGIN + inner, np.array(ORIGIN) + (23, 26, 29) * np.array(STEP) - inner, (20, 3)
    ):
        wanted = field(around(embedding, place)).T
        node, similarity = embedding.find(wanted.astype(np.float32))
        found = field(around(embedding, embedding.position(node))).T
        assert similarity == pytest.approx((wanted * found).sum(1).mean(), abs=0.01)
        assert (np.abs(embedding.position(node) - place) < 0.75 * np.array(STEP)).all()


def test_nothing_to_look_for_is_found_nowhere():
    embedding = field_embedding((6, 6, 6), ORIGIN, STEP, np.zeros(3))
    assert embedding.find(np.zeros((53, 128), np.float32))[1] == 0


def test_nothing_is_more_alike_than_a_node_with_itself():
    embedding = field_embedding((12, 12, 12), ORIGIN, STEP, np.zeros(3))
    for node in nodes_of(embedding)[::7]:
        found, similarity = embedding.find(
            embedding.vectors(around(embedding, embedding.position(node)))
        )
        assert found.tolist() == node.tolist() and 0.99 < similarity <= 1


def test_there_is_no_vector_outside_the_grid():
    embedding = pack(np.ones((2, 6, 9, 12), np.float32), ORIGIN, STEP)
    places = (
        np.array([(-1, 0, 0), (0, 0, 0), (5, 8, 11), (6, 8, 11), (5, 9, 11), (5, 8, 12)]) * STEP
        + ORIGIN
    )
    assert embedding.vectors(places).any(1).tolist() == [False, True, True, False, False, False]


def test_nearest_undoes_position_and_stays_on_the_grid():
    embedding = pack(np.ones((2, 6, 9, 12), np.float32), ORIGIN, STEP)
    for node in nodes_of(embedding):
        assert (
            embedding.nearest(
                embedding.position(node) + 0.49 * np.array(STEP) * (-1, 1, -1)
            ).tolist()
            == node.tolist()
        )
    assert embedding.position(np.array([1, 2, 3])).tolist() == [16, 6, 19]
    assert embedding.nearest(np.array([-1000, 1000, 7])).tolist() == [0, 8, 0]
