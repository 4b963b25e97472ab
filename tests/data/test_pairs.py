import numpy as np
import pytest
import torch
from torch.utils.data import default_collate

from alice_nnunet.data.body import find_body
from alice_nnunet.data.pairs import DRAWS, AlignedPairs, NoMatch
from alice_nnunet.data.volumes import open_volume, save_volume
from alice_nnunet.matcher.baselines import match_by_body
from alice_nnunet.data.match import Match

SIZE = (8, 12, 16)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Four volumes of different sizes; voxel values tell volume and place."""
    folder, rng = tmp_path_factory.mktemp("volumes"), np.random.default_rng(0)
    for index in range(4):
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
        save_volume(folder, f"case{index}", image, {"alice": known}, SIZE)
    return folder


CASES = [f"case{i}" for i in range(4)]


def pairs(
    folder, matcher=match_by_body, queries=CASES, keys=CASES, seed=(0, 0), min_score=0.7
) -> AlignedPairs:
    return AlignedPairs(folder, queries, keys, SIZE, matcher, min_score, seed, 100)


def test_crops_are_centred_on_the_point_and_its_match(folder):
    asked = []

    def matcher(point, query, key):
        asked.append((point, query.name, key.name))
        return Match((5, 6, 7), 0.9)

    item = pairs(folder, matcher)[3]
    ((point, query, key),) = asked
    assert (item["query_case"], item["key_case"], item["score"], item["rejected"]) == (
        query,
        key,
        0.9,
        0,
    )
    assert np.array_equal(item["query"], open_volume(folder, query).read_crop(point, SIZE))
    assert np.array_equal(item["key"], open_volume(folder, key).read_crop((5, 6, 7), SIZE))
    assert item["query"].shape == (1, *SIZE) and item["query"].dtype == np.float32


def test_an_item_depends_on_seed_and_index_alone(folder):
    first, second = pairs(folder), pairs(folder)
    second[7], second[2]
    assert all(np.array_equal(first[5][k], second[5][k]) for k in first[5])
    assert not np.array_equal(first[5]["query"], first[6]["query"])
    assert not np.array_equal(first[5]["query"], pairs(folder, seed=(1, 0))[5]["query"])
    assert not np.array_equal(first[5]["query"], pairs(folder, seed=(0, 1))[5]["query"])


def test_query_and_key_are_always_two_people_and_everyone_comes(folder):
    drawn = [(i["query_case"], i["key_case"]) for i in (pairs(folder)[n] for n in range(100))]
    assert all(q != k for q, k in drawn) and len(set(drawn)) == 12
    held_out = [
        (i["query_case"], i["key_case"])
        for i in (pairs(folder, queries=["case3"])[n] for n in range(20))
    ]
    assert {q for q, _ in held_out} == {"case3"} and {k for _, k in held_out} == set(CASES[:3])


def test_low_scores_are_rejected_redrawn_and_counted(folder):
    scores = iter([0.1, 0.69, 0.2, 0.7])
    item = pairs(folder, lambda point, query, key: Match(point, next(scores)))[0]
    assert item["rejected"] == 3 and item["score"] == 0.7


def test_a_dataset_that_does_not_match_says_so(folder):
    calls = []
    with pytest.raises(NoMatch, match="same body region"):
        pairs(folder, lambda point, query, key: calls.append(point) or Match(point, 0.0))[0]
    assert len(calls) == DRAWS


def test_one_case_is_no_pair(folder):
    with pytest.raises(ValueError, match="two different cases"):
        pairs(folder, queries=["case0"], keys=["case0"])


def test_a_batch_is_the_items_put_together(folder):
    share = [3, 4, 5]
    batch, expected = (
        pairs(folder).batch(share),
        default_collate([pairs(folder)[index] for index in share]),
    )
    assert batch.keys() == expected.keys()
    for name in ("query", "key", "score", "rejected"):
        assert (
            torch.equal(batch[name], expected[name]) and batch[name].dtype == expected[name].dtype
        )
    assert (
        batch["query_case"] == expected["query_case"] and batch["key_case"] == expected["key_case"]
    )


def test_the_other_person_is_drawn_as_from_a_list_without_the_first(folder):
    many = [f"c{i}" for i in range(7)]
    for queries, keys in ((many, many), (many[:2], many), (["other"], many)):
        drawn = AlignedPairs(folder, queries, keys, SIZE, match_by_body, 0.7, (0, 0), 100)
        for seed in range(40):
            rng = np.random.default_rng(seed)
            query = queries[rng.integers(len(queries))]
            others = [key for key in keys if key != query]
            expected = query, others[rng.integers(len(others))]
            assert drawn.draw_cases(np.random.default_rng(seed)) == expected
