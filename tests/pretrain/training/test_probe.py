import numpy as np
import pytest
import torch

from alice_nnunet.pretrain.training.probe import matched_crops_found, share_found
from alice_nnunet.pretrain.training.state import build_state
from tests.helpers.pretraining import CPU, noise, pair_batch, small_config


def test_share_is_counted_pair_by_pair():
    rng = np.random.default_rng(0)
    queries, keys = (torch.from_numpy(rng.normal(size=(9, 5))) for _ in range(2))
    q, k = (f - f.mean(0) for f in (queries, keys))
    cosine = np.array([[float(a @ b / (a.norm() * b.norm())) for b in k] for a in q])
    right = sum(cosine[i].argmax() == i for i in range(9)) + sum(
        cosine[:, i].argmax() == i for i in range(9)
    )
    assert share_found(queries, keys) == pytest.approx(right / 18)
    assert share_found(queries, queries) == 1.0 and share_found(queries + 100, queries) == 1.0
    assert share_found(queries, -queries) == 0.0


def test_features_that_are_all_the_same_are_at_chance():
    assert share_found(torch.ones(8, 4), torch.ones(8, 4)) == 1 / 8


def test_an_encoder_finds_copies_and_no_strangers():
    state = build_state(small_config(), CPU)
    before = {name: value.clone() for name, value in state.model.state_dict().items()}

    strangers = [noise(seed, pairs=4) for seed in range(4)]
    copies = [
        pair_batch(batch.query, batch.query + 1e-3 * batch.key)  # with other noise
        for batch in strangers
    ]

    assert matched_crops_found(state, copies, "fp32") == 1.0
    assert matched_crops_found(state, strangers, "fp32") < 0.5
    assert all(torch.equal(before[name], v) for name, v in state.model.state_dict().items())
