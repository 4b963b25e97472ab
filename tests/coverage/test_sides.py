import numpy as np

from alice_nnunet.coverage.sides import LEFT_RIGHT, UPSIDE_DOWN, Flipped, Sides, find_sides
from alice_nnunet.coverage.surroundings import random_surroundings
from alice_nnunet.matcher.embedding import pack


def linked(sides: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Noisy gains of scans of these sides with 8 others, the last of which are missing."""
    count = len(sides)
    others = np.stack([rng.choice(np.delete(np.arange(count), i), 9, False) for i in range(count)])
    gains = 2.0 * sides[:, None] * sides[others] + rng.normal(size=others.shape)
    others[:, -1] = -1
    gains[:, -1] = -100
    return gains, others


def test_the_few_that_lie_the_other_way_round_are_found():
    rng = np.random.default_rng(0)
    sides = np.ones(40, int)
    sides[[3, 17, 30]] = -1
    gains, others = linked(sides, rng)
    assert np.flatnonzero(find_sides(gains, others)).tolist() == [3, 17, 30]
    assert not find_sides(np.abs(gains[:, :8]), others[:, :8]).any()


def test_little_evidence_changes_nothing():
    others = np.array([[1, -1], [0, -1], [-1, -1]])
    weak = np.array([[-0.4, 0], [-0.4, 0], [0, 0]])
    assert not find_sides(weak, others).any()
    assert find_sides(3 * weak, others).sum() == 1


def test_scans_differ_in_either_way():
    sides = Sides(np.array([True, False, True]), np.array([False, False, True]))
    others = np.array([[1, 2], [0, 2], [0, 1]])
    assert sides.differ(others).tolist() == [[True, True], [True, True], [True, True]]
    assert not Sides(sides.mirrored, sides.mirrored).differ(np.array([[2], [1], [0]])).any()


def test_the_places_of_a_flipped_scan_are_those_of_the_scan():
    vectors = np.random.default_rng(0).normal(size=(6, 9, 8, 7)).astype(np.float32)
    step = (10.0, 9.0, 8.0)
    origin = (5.0, 4.5, 4.0)
    extent = np.array(vectors.shape[1:]) * step
    places = random_surroundings(pack(vectors, origin, step), 10, np.random.default_rng(1))
    for axes in (LEFT_RIGHT, UPSIDE_DOWN):
        turned = np.flip(vectors, [axis + 1 for axis in axes])
        flipped = Flipped(pack(turned, origin, step), extent, axes).surroundings(places)
        assert np.allclose(flipped.vectors[:, 13], places.vectors[:, 13], atol=1e-6)
        assert not np.allclose(flipped.vectors[:, 0], places.vectors[:, 0], atol=1e-6)
