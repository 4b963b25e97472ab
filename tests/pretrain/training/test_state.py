import dataclasses

import pytest
import torch

from alice_nnunet.data.pairs import PairBatch
from alice_nnunet.pretrain.training.config import config_from_dict
from alice_nnunet.pretrain.training.state import (
    build_optimizer,
    build_state,
    load_state,
    save_state,
)
from alice_nnunet.pretrain.training.step import train_step
from tests.helpers.pretraining import CPU, SPACING, noise, same_weights, small_config


def batch(step: int) -> PairBatch:
    """Noise, with vectors of a matcher for its 8 tokens."""
    query, key = torch.randn(2, 2, 8, 32, generator=torch.Generator().manual_seed(step))
    return dataclasses.replace(noise(step), query_anatomy=query, key_anatomy=key)


@pytest.mark.parametrize("settings", [[], ["dv_by=place", "memory=6", "weight_an=2"]], ids=str)
def test_saved_and_loaded_it_goes_on_as_if_nothing_had_been(tmp_path, settings):
    config = small_config(*settings)
    whole = build_state(config, CPU)
    for step in range(4):
        train_step(whole, batch(step), config, SPACING)

    first = build_state(config, CPU)
    for step in range(2):
        train_step(first, batch(step), config, SPACING)
    first.nonfinite = 3
    save_state(tmp_path / "c.pth", first, config, {}, {})

    torch.manual_seed(123)  # whatever happened to the global generators in between
    second = load_state(tmp_path / "c.pth", config, CPU)
    assert (second.step, second.nonfinite) == (2, 3)
    for step in range(2, 4):
        train_step(second, batch(step), config, SPACING)
    assert second.step == 4 and same_weights(whole, second)


def test_weights_depend_on_the_seed_alone():
    torch.manual_seed(5)
    first = build_state(small_config(), CPU)
    torch.manual_seed(6)
    second = build_state(small_config(), CPU)
    assert same_weights(first, second)
    assert not same_weights(first, build_state(small_config("seed=1"), CPU))


def test_positions_and_mask_tokens_do_not_decay_but_in_earlier_runs():
    config = small_config()
    model = build_state(config, CPU).model
    names = {id(parameter): name for name, parameter in model.named_parameters()}

    def decayed(config) -> list[str]:
        return [names[id(p)] for p in build_optimizer(model, config).param_groups[0]["params"]]

    earlier = config.as_dict()
    del earlier["decay_positions"]
    fixed = ["encoder.positions", "decoder.mask_token", "decoder.positions"]
    assert [name for name in decayed(config_from_dict(earlier)) if name not in fixed] == decayed(
        config
    )
    assert set(fixed) <= set(decayed(config_from_dict(earlier)))
    assert "encoder.blocks.0.attention.qkv.weight" in decayed(config)


def test_a_run_of_an_earlier_version_keeps_its_crops_and_tokens():
    earlier = small_config().as_dict()
    del earlier["crops"], earlier["method"]["reconstruct"]
    config = config_from_dict(earlier)
    assert (config.crops, config.method.reconstruct) == ("centred", "all")
    assert (small_config().crops, small_config().method.reconstruct) == ("inside", "content")


def test_a_run_of_an_earlier_version_goes_on_with_its_optimizer(tmp_path):
    config = dataclasses.replace(small_config(), decay_positions=True)
    whole = build_state(config, CPU)
    train_step(whole, noise(0), config, SPACING)
    save_state(tmp_path / "c.pth", whole, config, {}, {})

    saved = torch.load(tmp_path / "c.pth", weights_only=True)
    del saved["config"]["decay_positions"]  # as an earlier version wrote it
    earlier = config_from_dict(saved["config"])
    assert earlier == config
    resumed = load_state(tmp_path / "c.pth", earlier, CPU)
    for state in (whole, resumed):
        train_step(state, noise(1), config, SPACING)
    assert same_weights(whole, resumed)
