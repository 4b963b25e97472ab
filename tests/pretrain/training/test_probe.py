import numpy as np
import pytest
import torch

from alice_nnunet.pretrain.training.config import make_config, read_settings
from alice_nnunet.pretrain.training.probe import matched_crops_found, share_found
from alice_nnunet.pretrain.training.state import build_state


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


def crops(seed: int, noise: float) -> dict:
    rng = np.random.default_rng(seed)
    query = rng.random((4, 1, 32, 32, 32), np.float32)
    return {
        "query": torch.from_numpy(query),
        "key": torch.from_numpy(query + noise * rng.random(query.shape, np.float32)),
    }


def test_an_encoder_finds_copies_and_no_strangers():
    small = ["width=24", "depth=2", "heads=2", "crop_size=32,32,32"]
    config = make_config("Dataset001_X", read_settings("vit", "tiny", small))
    model = build_state(config, torch.device("cpu")).model
    before = {name: value.clone() for name, value in model.state_dict().items()}
    batches = [crops(seed, 1e-3) for seed in range(4)]
    assert matched_crops_found(model, batches, "fp32") == 1.0
    strangers = [
        {"query": crops(seed, 0)["query"], "key": crops(seed + 9, 0)["query"]} for seed in range(4)
    ]
    assert matched_crops_found(model, strangers, "fp32") < 0.5
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
