import torch

from alice_nnunet.pretrain.training.state import State, build_state, load_state, save_state
from alice_nnunet.pretrain.training.step import train_step
from tests.helpers.pretraining import CPU, SPACING, noise, small_config


def same_weights(ours: State, theirs: State) -> bool:
    others = theirs.model.state_dict()
    return all(torch.equal(value, others[name]) for name, value in ours.model.state_dict().items())


def test_saved_and_loaded_it_goes_on_as_if_nothing_had_been(tmp_path):
    config = small_config()
    whole = build_state(config, CPU)
    for step in range(4):
        train_step(whole, noise(step), config, SPACING)

    first = build_state(config, CPU)
    for step in range(2):
        train_step(first, noise(step), config, SPACING)
    first.nonfinite = 3
    save_state(tmp_path / "c.pth", first, config, {}, {})

    torch.manual_seed(123)  # whatever happened to the global generators in between
    second = load_state(tmp_path / "c.pth", config, CPU)
    assert (second.step, second.nonfinite) == (2, 3)
    for step in range(2, 4):
        train_step(second, noise(step), config, SPACING)
    assert second.step == 4 and same_weights(whole, second)


def test_weights_depend_on_the_seed_alone():
    torch.manual_seed(5)
    first = build_state(small_config(), CPU)
    torch.manual_seed(6)
    second = build_state(small_config(), CPU)
    assert same_weights(first, second)
    assert not same_weights(first, build_state(small_config("seed=1"), CPU))
