import numpy as np
import pytest
import torch

from alice_nnunet.pretrain.training.probe import matched_crops_found, share_found
from alice_nnunet.pretrain.training.state import build_state
from tests.helpers.pretraining import CPU, noise, pair_batch, small_config


def people(name: str, count: int) -> list[str]:
    return [f"{name}{number}" for number in range(count)]


def test_share_is_counted_pair_by_pair():
    rng = np.random.default_rng(0)
    queries, keys = (torch.from_numpy(rng.normal(size=(9, 5))) for _ in range(2))
    query_case = list("aabbccdda")
    key_case = list("bcacabaaa")  # the last pair is of one scan

    q, k = (f - f.mean(0) for f in (queries, keys))
    cosine = np.array([[float(a @ b / (a.norm() * b.norm())) for b in k] for a in q])
    right = 0
    candidates = []
    for i in range(9):
        one_scan = query_case[i] == key_case[i]
        others = [j for j in range(9) if one_scan or j == i or key_case[j] != query_case[i]]
        right += max(others, key=lambda j: cosine[i, j]) == i
        candidates.append(len(others))

        others = [j for j in range(9) if one_scan or j == i or query_case[j] != key_case[i]]
        right += max(others, key=lambda j: cosine[j, i]) == i
        candidates.append(len(others))

    found = share_found(queries, keys, query_case, key_case)
    assert found.share == pytest.approx(right / 18)
    assert found.among == pytest.approx(np.mean(candidates))
    assert found.chance == pytest.approx(np.mean([1 / count for count in candidates]))


def test_copies_are_found_and_opposites_are_not():
    queries = torch.from_numpy(np.random.default_rng(0).normal(size=(9, 5)))
    cases = people("a", 9), people("b", 9)
    assert share_found(queries, queries, *cases).share == 1.0
    assert share_found(queries + 100, queries, *cases).share == 1.0
    assert share_found(queries, -queries, *cases).share == 0.0


def test_crops_of_the_same_scan_do_not_hide_the_match():
    """Two people, matched with each other: each crop resembles those of its own scan most."""
    place = torch.eye(4).repeat(2, 1)
    person = torch.tensor([[5.0, 0.0]] * 4 + [[0.0, 5.0]] * 4)
    queries = torch.cat([place, person], 1)
    keys = torch.cat([place, person.flip(0)], 1)

    found = share_found(queries, keys, ["a"] * 4 + ["b"] * 4, ["b"] * 4 + ["a"] * 4)
    assert found.share == 1.0 and found.among == 4


def test_pairs_of_one_scan_are_told_from_other_places_of_it():
    """As with -matcher same: to leave out the scan would leave the match alone, always found."""
    rng = np.random.default_rng(0)
    queries, keys = (torch.from_numpy(rng.normal(size=(16, 5))) for _ in range(2))
    found = share_found(queries, keys, ["a"] * 16, ["a"] * 16)
    assert found.among == 16 and found.chance == 1 / 16 and found.share < 0.5


def test_features_that_are_all_the_same_are_at_chance():
    found = share_found(torch.ones(8, 4), torch.ones(8, 4), people("a", 8), people("b", 8))
    assert found.share == found.chance == 1 / 8


def test_an_encoder_finds_copies_and_no_strangers():
    state = build_state(small_config(), CPU)
    before = {name: value.clone() for name, value in state.model.state_dict().items()}

    strangers = [noise(seed, pairs=4) for seed in range(4)]
    copies = [
        pair_batch(batch.query, batch.query + 1e-3 * batch.key)  # with other noise
        for batch in strangers
    ]

    assert matched_crops_found(state, copies, "fp32").share == 1.0
    assert matched_crops_found(state, strangers, "fp32").share < 0.5
    assert all(torch.equal(before[name], v) for name, v in state.model.state_dict().items())
