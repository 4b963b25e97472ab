import dataclasses

import numpy as np
import pytest
import torch

from alice_nnunet.data.body import find_body
from alice_nnunet.data.match import Match
from alice_nnunet.data.pairs import (
    BELOW,
    CHECKED_PAIRS,
    DRAWS,
    LARGEST_SHIFT,
    MATCHED,
    SAME_SCAN,
    AlignedPairs,
    NoMatch,
)
from alice_nnunet.data.partners import Partners
from alice_nnunet.data.volumes import open_volume, save_volume
from alice_nnunet.matcher.baselines import match_by_body
from alice_nnunet.pretrain.runtime.loading import batches

SIZE = (8, 12, 16)
CASES = [f"case{i}" for i in range(4)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Four volumes of different sizes; voxel values tell volume and place."""
    folder = tmp_path_factory.mktemp("volumes")
    rng = np.random.default_rng(0)

    for index, case in enumerate(CASES):
        size = tuple(int(n) for n in rng.integers(24, 40, 3))
        image = rng.random((1, *size), np.float32) * 0.5 + index
        inside = np.zeros(size, bool)
        inside[4:-4, 4:-4, 4:-4] = True
        spacing = (3.0, 3.0, 3.0)
        known = {
            "spacing": spacing,
            "body": find_body(inside, spacing).to_dict(),
            "plans_sha256": "",
        }
        save_volume(folder, case, image, {"alice": known}, SIZE)
    return folder


def pairs(folder, matcher=match_by_body, queries=CASES, keys=CASES, seed=(0, 0)) -> AlignedPairs:
    return AlignedPairs(folder, queries, keys, SIZE, matcher, min_score=0.7, seed=seed)


def test_crops_are_centred_on_the_point_and_its_match(folder):
    asked = []

    def matcher(point, query, key):
        asked.append((point, query.name, key.name))
        return Match((5, 6, 7), 0.9)

    batch = pairs(folder, matcher).batch([3])

    ((point, query, key),) = asked
    assert batch.query_case == [query] and batch.key_case == [key]
    assert batch.score.tolist() == [0.9] and batch.rejected.tolist() == [0]
    assert batch.query.shape == (1, 1, *SIZE) and batch.query.dtype == torch.float32
    assert np.array_equal(batch.query[0], open_volume(folder, query).read_crop(point, SIZE))
    assert np.array_equal(batch.key[0], open_volume(folder, key).read_crop((5, 6, 7), SIZE))


def test_a_batch_is_its_pairs_in_order(folder):
    batch = pairs(folder).batch([3, 4, 5])

    assert batch.score.dtype == torch.float64 and batch.rejected.dtype == torch.int64
    for row, index in enumerate([3, 4, 5]):
        pair = pairs(folder).draw(index)
        assert (batch.query_case[row], batch.key_case[row]) == (pair.query.name, pair.key.name)
        assert (batch.score[row], batch.rejected[row]) == (pair.match.score, pair.rejected)
        assert np.array_equal(batch.query[row], pair.query.read_crop(pair.point, SIZE))
        assert np.array_equal(batch.key[row], pair.key.read_crop(pair.match.point, SIZE))


def test_a_pair_depends_on_seed_and_index_alone(folder):
    def query(index: int, seed=(0, 0), before=()) -> torch.Tensor:
        stream = pairs(folder, seed=seed)
        for other in before:
            stream.draw(other)
        return stream.batch([index]).query

    assert torch.equal(query(5), query(5, before=(7, 2)))
    assert not torch.equal(query(5), query(6))
    assert not torch.equal(query(5), query(5, seed=(1, 0)))
    assert not torch.equal(query(5), query(5, seed=(0, 1)))


def test_query_and_key_are_always_two_people_and_everyone_comes(folder):
    everyone = [pairs(folder).draw(index) for index in range(100)]
    drawn = {(pair.query.name, pair.key.name) for pair in everyone}
    assert all(query != key for query, key in drawn) and len(drawn) == 12

    held_out = [pairs(folder, queries=["case3"]).draw(index) for index in range(20)]
    assert {pair.query.name for pair in held_out} == {"case3"}
    assert {pair.key.name for pair in held_out} == set(CASES[:3])


def test_the_same_volume_twice_where_that_is_asked_for(folder):
    stream = dataclasses.replace(pairs(folder), same_volume=True)
    drawn = [stream.draw(index) for index in range(20)]
    assert all(pair.query.name == pair.key.name for pair in drawn)


def test_low_scores_are_rejected_redrawn_and_counted(folder):
    scores = iter([0.1, 0.69, 0.2, 0.7])
    pair = pairs(folder, lambda point, query, key: Match(point, next(scores))).draw(0)
    assert pair.rejected == 3 and pair.match.score == 0.7


def test_where_nothing_matches_the_best_near_miss_is_taken(folder):
    scores = [*np.linspace(0.1, 0.68, DRAWS - 1), 0.5]
    asked = []

    def matcher(point, query, key):
        asked.append((point, query.name, key.name))
        return Match(point, scores[len(asked) - 1])

    stream = pairs(folder, matcher)
    pair = stream.draw(0)
    assert len(asked) == DRAWS and pair.rejected == DRAWS and pair.kind == BELOW
    assert pair.match.score == 0.68
    assert (pair.point, pair.query.name, pair.key.name) == asked[DRAWS - 2]


def test_where_nothing_is_near_two_overlapping_crops_of_one_scan_are_taken(folder):
    stream = pairs(folder, lambda point, query, key: Match(point, 0.3))
    shifts = []
    for index in range(40):
        pair = stream.draw(index)
        assert pair.kind == SAME_SCAN and pair.query is pair.key
        assert np.isnan(pair.match.score)
        size = pair.query.body.size
        assert all(0 <= p < n for p, n in zip(pair.match.point, size))
        shifts.append(np.subtract(pair.match.point, pair.point))

        again = stream.draw(index)
        assert (again.point, again.match.point) == (pair.point, pair.match.point)

    largest = np.abs(shifts).max(0)
    assert (largest <= LARGEST_SHIFT * np.array(SIZE)).all() and (largest > 0).all()

    batch = stream.batch([0, 1])
    assert batch.kind == [SAME_SCAN] * 2 and batch.unmatched == [0, 1]
    assert torch.isfinite(batch.key).all()


def test_the_check_fails_where_nearly_nothing_matches(folder):
    def stream(share: float) -> AlignedPairs:
        """So many of the pairs match; every draw asks DRAWS times or once."""
        matching = np.random.default_rng(0).permutation(CHECKED_PAIRS) < share * CHECKED_PAIRS
        outcomes = iter([score for hit in matching for score in ([1.0] if hit else [0.0] * DRAWS)])
        return pairs(folder, lambda point, query, key: Match(point, next(outcomes)))

    stream(0.2).check()
    with pytest.raises(NoMatch, match=r"^2 of the first 32 pairs .* same body region"):
        stream(0.06).check()
    assert pairs(folder).batch([0, 1]).kind == [MATCHED] * 2


def test_one_case_is_no_pair(folder):
    with pytest.raises(ValueError, match="two different cases"):
        pairs(folder, queries=["case0"], keys=["case0"])


def test_the_other_person_is_drawn_as_from_a_list_without_the_first(folder):
    many = [f"c{i}" for i in range(7)]
    for queries, keys in ((many, many), (many[:2], many), (["other"], many)):
        drawn = pairs(folder, queries=queries, keys=keys)
        for seed in range(40):
            rng = np.random.default_rng(seed)
            query = queries[rng.integers(len(queries))]
            others = [key for key in keys if key != query]
            expected = (query, others[rng.integers(len(others))])
            assert drawn.draw_cases(np.random.default_rng(seed)) == expected


def test_only_the_crops_are_pinned(folder, monkeypatch):
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda t: pinned.append(t.shape) or t)
    batch = pairs(folder).batch([0, 1])
    assert torch.equal(batch.pin_memory().key, batch.key)
    assert pinned == [batch.query.shape, batch.key.shape]


@pytest.fixture
def table(folder) -> Partners:
    """case0 shows what case1 and case2 show, at two of its places; case3 matches nobody."""
    positions = np.full((4, 3, 3), np.nan, np.float32)
    positions[0] = [[40, 40, 40], [60, 60, 60], [20, 20, 20]]
    positions[1:3, 0] = 50
    scores = np.zeros((4, 3, 3), np.uint8)
    scores[0, 0, :2] = 250
    scores[0, 1, 1] = 200
    scores[1:3, 0, 0] = 250
    return Partners(
        cases=np.array(CASES),
        contents=np.arange(4),
        positions=positions,
        regions=np.array([[0, 1, 1], [0, -1, -1], [0, -1, -1], [-1, -1, -1]], np.int16),
        others=np.array([[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]], np.int32),
        scores=scores,
        threshold=0.7,
    )


def certain(point, query, key) -> Match:
    return Match(point, 1.0)


@pytest.mark.parametrize("by_region", [False, True])
def test_pairs_are_drawn_from_what_is_known_to_match(folder, table, by_region):
    stream = dataclasses.replace(pairs(folder, certain), partners=table, by_region=by_region)
    drawn = [stream.draw(index) for index in range(300)]
    names = {(pair.query.name, pair.key.name) for pair in drawn}
    assert names == {
        ("case0", "case1"),
        ("case0", "case2"),
        ("case1", "case0"),
        ("case2", "case0"),
    }

    for pair in drawn:
        assert pair.rejected == 0 and pair.query.body.contains(pair.point)
        if pair.query.name != "case0":
            continue
        place = (np.array(pair.point) + 0.5) * pair.query.spacing
        nearest = np.linalg.norm(table.positions[0] - place, axis=1).argmin()
        if not by_region:
            assert nearest in (0, 1) and (pair.key.name == "case2" or nearest == 0)

    queries = [pair.query.name for pair in drawn]
    share = queries.count("case0") / len(drawn)
    # One of three scans; the only scan of one region and one of three in the other.
    assert share == pytest.approx(2 / 3 if by_region else 1 / 3, abs=0.1)


def test_a_pair_with_partners_depends_on_seed_and_index_alone(folder, table):
    stream = dataclasses.replace(pairs(folder), partners=table)
    alone = [dataclasses.replace(stream).batch([index]) for index in (7, 3, 5)]
    for workers in (0, 2):
        loaded = list(batches(stream, [[7], [3], [5]], workers))
        for ours, theirs in zip(alone, loaded):
            assert ours.query_case == theirs.query_case and ours.key_case == theirs.key_case
            assert torch.equal(ours.query, theirs.query) and torch.equal(ours.key, theirs.key)


def test_crops_inside_are_the_same_places_and_inside_where_they_can_be(folder, table):
    centred = dataclasses.replace(pairs(folder), partners=table)
    stream = dataclasses.replace(centred, inside=True)
    shifts = []
    for index in range(30):
        pair = stream.draw(index)
        before = centred.draw(index)
        assert (pair.query.name, pair.key.name) == (before.query.name, before.key.name)
        assert (pair.point, pair.match) == (before.point, before.match)
        shifts.append(np.subtract(pair.query_middle, before.query_middle))
        assert np.array_equal(shifts[-1], np.subtract(pair.key_middle, before.key_middle))

        # Each volume is larger than a crop, and the body's boxes are alike: one shift suits both.
        batch = stream.batch([index])
        for crop, case in ((batch.query, pair.query.name), (batch.key, pair.key.name)):
            assert crop.min() >= int(case[-1]) and (crop > 0).float().mean() > 0.999
    assert np.abs(shifts).max() > 0

    again = stream.batch([7])
    for workers in (0, 2):
        (loaded,) = list(batches(stream, [[7]], workers))
        assert torch.equal(loaded.query, again.query) and torch.equal(loaded.key, again.key)


def test_what_the_table_promises_and_the_matcher_denies_is_rejected(folder, table):
    asked = []

    def matcher(point, query, key):
        asked.append((query.name, key.name))
        return Match(point, 0.69 if len(asked) == 2 else 0.1)

    stream = dataclasses.replace(pairs(folder, matcher), partners=table)
    pair = stream.draw(0)
    assert pair.kind == BELOW and pair.rejected == len(asked)
    assert (pair.query.name, pair.key.name) == asked[1]
    assert len({query for query, _ in asked}) == 1


def test_without_any_partner_pairs_are_drawn_at_random(folder, table):
    stream = dataclasses.replace(pairs(folder, certain, queries=["case3"]), partners=table)
    drawn = [stream.draw(index) for index in range(20)]
    assert {pair.key.name for pair in drawn} == set(CASES[:3])


def test_the_anatomy_is_that_around_both_points(folder):
    """Vectors that are the volume's number and the point itself."""

    def anatomy(volume, point):
        return np.array([[float(volume.name[-1]), *point]] * 2, np.float32)

    data = dataclasses.replace(pairs(folder), anatomy=anatomy)
    batch = data.batch([4, 9])
    for row, index in enumerate((4, 9)):
        pair = data.draw(index)
        assert np.array_equal(batch.query_anatomy[row], anatomy(pair.query, pair.point))
        assert np.array_equal(batch.key_anatomy[row], anatomy(pair.key, pair.match.point))
    assert pairs(folder).batch([4]).query_anatomy is None
