import copy

import pytest
import torch

from alice_nnunet.pretrain.embedding.config import EmbedConfig, embed_config
from alice_nnunet.pretrain.embedding.dry_run import noise
from alice_nnunet.pretrain.embedding.state import State, build_state, load_state, save_state
from alice_nnunet.pretrain.embedding.step import share_found, train_step

CPU = torch.device("cpu")
SMALL = [
    "iterations=10",
    "batch_size=2",
    "points=200",
    "widths=4,4,8,8",
    "channels=4",
    "patch_size=16,32,32",
    "crop_size=20,40,40",
    "voxel=8",
]


def small_config(features: str) -> EmbedConfig:
    return embed_config("Dataset001_X", "tiny", [f"features={features}", *SMALL])


def spoiled(config: EmbedConfig) -> dict:
    """A batch whose patches are no numbers."""
    batch = noise(config)
    batch["crop"][:] = float("nan")
    return batch


def content(state: State) -> dict[str, torch.Tensor]:
    """Weights, buffers and moments."""
    moments = {
        f"{number} {name}": value
        for number, values in state.optimizer.state_dict()["state"].items()
        for name, value in values.items()
    }
    return copy.deepcopy({**state.network.state_dict(), **moments})


def same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[n], theirs[n]) for n in ours)


@pytest.mark.parametrize("features", ["sam", "context"])
def test_a_step_whose_patches_are_no_numbers_is_skipped(features):
    config = small_config(features)
    state = build_state(config, CPU)
    assert train_step(state, noise(config), config).finite
    before = content(state)

    assert not train_step(state, spoiled(config), config).finite
    assert not train_step(state, spoiled(config), config).finite
    assert (state.step, state.nonfinite) == (3, 2) and same(content(state), before)

    assert train_step(state, noise(config), config).finite
    assert (state.step, state.nonfinite) == (4, 0) and not same(content(state), before)


@pytest.mark.parametrize("features", ["sam", "context"])
def test_saved_and_loaded_it_goes_on_as_if_nothing_had_been(tmp_path, features):
    config = small_config(features)
    whole = build_state(config, CPU)
    for _ in range(3):
        train_step(whole, noise(config), config)

    first = build_state(config, CPU)
    train_step(first, noise(config), config)
    first.nonfinite = 2
    save_state(tmp_path / "c.pth", first, config, {})
    second = load_state(tmp_path / "c.pth", config, CPU)
    assert (second.step, second.nonfinite) == (1, 2)
    for _ in range(2):
        train_step(second, noise(config), config)

    assert same(content(second), content(whole))


def test_a_checkpoint_without_a_count_of_skipped_steps_is_loaded(tmp_path):
    config = small_config("sam")
    save_state(tmp_path / "c.pth", build_state(config, CPU), config, {})
    saved = torch.load(tmp_path / "c.pth", weights_only=True)
    del saved["nonfinite"]
    torch.save(saved, tmp_path / "c.pth")
    assert load_state(tmp_path / "c.pth", config, CPU).nonfinite == 0


def test_found_is_the_share_whose_most_similar_point_is_near():
    points = torch.tensor([[[0.0, 0, 0], [30, 0, 0], [60, 0, 0], [90, 0, 0]]])
    first = torch.eye(4)[None]
    second = torch.eye(4)[None, [0, 1, 3, 2]]  # the last two are taken for each other
    inside = torch.tensor([[True, True, True, True]])
    assert share_found((first, first), (second, second), inside, points, 20.0) == 0.5
    assert share_found((first, first), (second, second), inside, points, 31.0) == 1.0
    inside[0, 3] = False  # shown by one patch only: neither asked for nor found
    assert share_found((first, first), (second, second), inside, points, 20.0) == pytest.approx(
        2 / 3
    )
