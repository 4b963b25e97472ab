"""What the loop asks of every method of pretraining, on every encoder that it trains."""

import copy

import pytest
import torch

from alice_nnunet.checkpoint import load_checkpoint
from alice_nnunet.errors import UserError
from alice_nnunet.model.encoders.registry import ENCODERS, build_encoder
from alice_nnunet.model.pretraining.method import Drawing
from alice_nnunet.model.pretraining.registry import METHODS, settings_class
from alice_nnunet.pretrain.training.config import (
    config_from_dict,
    known_settings,
    read_settings,
)
from alice_nnunet.pretrain.training.state import build_state, load_state, save_state
from alice_nnunet.pretrain.training.step import train_step, validate, views_of
from tests.helpers.pretraining import CPU, SPACING, method_config, noise, same_weights


def trained(method: str) -> list[str]:
    """The encoders that a method trains."""
    kind = settings_class(method)
    return [name for name in ENCODERS if kind.refusal(name, {"crop_size": (32, 32, 32)}) is None]


PAIRS = [(method, encoder) for method in METHODS for encoder in trained(method)]


@pytest.mark.parametrize(("method", "encoder"), PAIRS)
def test_a_run_goes_on_with_the_same_bits(method, encoder, tmp_path):
    config = method_config(method, encoder)
    whole = build_state(config, CPU)
    start = copy.deepcopy(whole.model.encoder.state_dict())
    for step in range(3):
        result = train_step(whole, noise(step, 4), config, SPACING)
        assert result.finite

        # What is logged is what the method says of itself.
        shown = [term for term in whole.model.terms if term in result.losses]
        assert list(result.losses) == shown and result.losses.keys() <= whole.model.weights.keys()
        assert set(result.spreads) <= set(whole.model.compared)
        assert "V" in result.second_moments
        if step == 1:
            save_state(tmp_path / "c.pth", whole, config, {}, {})

    torch.manual_seed(123)  # whatever happened to the global generators in between
    saved = config_from_dict(config.as_dict())
    assert saved == config
    second = load_state(tmp_path / "c.pth", saved, CPU)
    train_step(second, noise(2, 4), saved, SPACING)
    assert same_weights(whole, second)

    # Fine-tuning takes the encoder's weights under the names that it has alone.
    moved = whole.model.encoder.state_dict()
    alone = build_encoder(encoder, config.encoder_arguments)
    assert list(load_checkpoint(tmp_path / "c.pth")["network_weights"]) == list(alone.state_dict())
    assert any(not torch.equal(moved[name], value) for name, value in start.items())


@pytest.mark.parametrize(("method", "encoder"), PAIRS)
def test_every_trained_parameter_has_a_gradient(method, encoder):
    config = method_config(method, encoder)
    state = build_state(config, CPU)
    state.model.train()
    generator = torch.Generator().manual_seed(0)
    query, key = views_of(noise(0, 4), state.model, Drawing(generator, SPACING))
    state.model(query, key, state.model.share([(query, key)])[0]).loss.backward()

    missing = [n for n, p in state.model.named_parameters() if p.requires_grad and p.grad is None]
    assert not missing
    fixed = [n for n, p in state.model.named_parameters() if not p.requires_grad and "enc" in n]
    assert all(state.model.get_parameter(name).grad is None for name in fixed)


@pytest.mark.parametrize("method", METHODS)
def test_views_of_parts_are_those_of_the_whole(method):
    encoder = trained(method)[0]
    model = build_state(method_config(method, encoder), CPU).model
    crops = noise(0, 4).query

    whole = model.make_views(crops, Drawing(torch.Generator().manual_seed(1), SPACING))
    for part in range(2):
        drawing = Drawing(torch.Generator().manual_seed(1), SPACING, (), part, 2)
        rows = slice(2 * part, 2 * part + 2)
        views = model.make_views(crops[rows], drawing)
        for name, expected in vars(whole.rows(rows)).items():
            found = getattr(views, name)
            assert (found is None) == (expected is None)
            assert found is None or torch.allclose(found, expected, atol=1e-6), name


@pytest.mark.parametrize("method", METHODS)
def test_a_batch_in_parts_is_the_same_step_or_refused(method):
    encoder = trained(method)[0]
    if method_config(method, encoder).method.compares_all_pairs:
        with pytest.raises(UserError, match="accumulate must be 1"):
            method_config(method, encoder, "accumulate=2")
        return

    results = []
    for parts in (1, 2):
        config = method_config(method, encoder, f"accumulate={parts}")
        results.append(train_step(build_state(config, CPU), noise(0, 4), config, SPACING))
    whole, parts = results
    for name, loss in whole.losses.items():
        assert parts.losses[name].item() == pytest.approx(loss.item(), rel=1e-4, abs=1e-6), name
    norm = whole.gradient_norm.item()
    assert parts.gradient_norm.item() == pytest.approx(norm, rel=1e-3)


@pytest.mark.parametrize("method", METHODS)
def test_validation_is_the_same_every_time(method):
    encoder = trained(method)[0]
    config = method_config(method, encoder)
    state = build_state(config, CPU)
    batches = [noise(0, 4), noise(1, 4)]
    first, _ = validate(state, batches, config, SPACING)
    second, output = validate(state, batches, config, SPACING)
    assert first == second and first.keys() <= state.model.weights.keys()

    made = output.reconstruction
    if made is not None:
        assert made.masked.shape == made.predicted.shape[:2]
        assert made.crop.shape == batches[0].query.shape


def test_no_setting_has_the_name_of_another_group():
    for encoder in ENCODERS:
        for method in METHODS:
            known = known_settings(encoder, "tiny", method)
            names = [name for group in known.values() for name in group]
            assert len(names) == len(set(names))
            assert settings_class(method).run.keys() <= known["run"].keys()


def test_settings_of_another_method_are_refused(tmp_path):
    file = tmp_path / "config.json"
    file.write_text('{"method_name": "mae", "method": {"mask_ratio": 0.5}}')
    with pytest.raises(UserError, match="add -method mae"):
        read_settings("vit", "tiny", [], file)
    assert read_settings("vit", "tiny", [], file, "mae").method["mask_ratio"] == 0.5
    with pytest.raises(UserError, match="unknown setting 'weight_dv'"):
        read_settings("vit", "tiny", ["weight_dv=1"], None, "mae")
