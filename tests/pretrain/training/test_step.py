import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from alice_nnunet.model.pretraining.method import Drawing
from alice_nnunet.model.transformer import Block, compile_blocks
from alice_nnunet.model.views import make_views
from alice_nnunet.pretrain.runtime.device import TRAINING, VALIDATION, generator_at
from alice_nnunet.pretrain.training.state import build_state
from alice_nnunet.pretrain.training.step import (
    encoder_gradients,
    train_step,
    validate,
    views_of,
)
from alice_nnunet.schedules import ema_momentum, warmup_cosine
from tests.helpers.pretraining import (
    CPU,
    FROZEN,
    SPACING,
    assert_same_gradients,
    gradients_of,
    noise,
    pair_batch,
    small_config,
    spoiled,
)


def test_a_step_is_the_textbook_step():
    config = small_config("clip_grad=1000000.0")
    state = build_state(config, CPU)
    train_step(state, noise(), config, SPACING)

    model = build_state(config, CPU).model
    model.train()
    generator = generator_at(config.seed, TRAINING, 0, CPU)
    batch = noise()
    query = make_views(batch.query, model.unit, SPACING, config.method, generator)
    key = make_views(batch.key, model.unit, SPACING, config.method, generator)
    output = model(query, key)
    output.loss.backward()
    groups = []
    for name, parameter in model.named_parameters():
        fixed = parameter.ndim < 2 or name.split(".")[-1] in ("positions", "mask_token")
        if parameter.requires_grad:
            groups.append({"params": [parameter], "weight_decay": 0.0 if fixed else 0.05})
    optimizer = torch.optim.AdamW(
        groups,
        lr=warmup_cosine(0, 10, 0, 3e-4),
        betas=(0.9, 0.95),
    )
    optimizer.step()
    model.after_step(ema_momentum(0, 10, 0.99), output.running)

    # The gradients are the same bits, so the optimizer may be compared by the weights it makes.
    assert state.step == 1
    for (name, ours), theirs in zip(state.model.named_parameters(), model.parameters()):
        assert ours.grad is theirs.grad is None or torch.equal(ours.grad, theirs.grad), name
    for (name, ours), theirs in zip(state.model.state_dict().items(), model.state_dict().values()):
        assert torch.allclose(ours, theirs, atol=1e-7), name


def test_in_bf16_on_a_cpu_losses_norms_and_weights_stay_in_fp32():
    exact = small_config("precision=fp32")
    expected = train_step(build_state(exact, CPU), noise(), exact, SPACING)

    config = small_config("precision=bf16")
    state = build_state(config, CPU)
    result = train_step(state, noise(), config, SPACING)

    assert result.finite and result.loss != expected.loss
    for name, loss in result.losses.items():
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(expected.losses[name].item(), rel=0.02, abs=0.02), name
    assert all(p.dtype == torch.float32 for p in state.model.parameters())
    assert all(gradient.dtype == torch.float32 for gradient in gradients_of(state.model).values())

    # A norm may be given bf16 and may return it, but what it computes in between is fp32: the
    # squares of these values, whose mean is 300 times their spread, need it.
    with torch.autocast("cpu", torch.bfloat16):
        x = (300 + torch.randn(5, 64, generator=torch.Generator().manual_seed(0))).bfloat16()
        single = F.layer_norm(x.float(), (64,))
        torch.testing.assert_close(F.layer_norm(x, (64,)), single.bfloat16(), rtol=0.01, atol=1e-3)


def test_gradients_are_clipped_and_lr_follows_the_schedule():
    config = small_config("clip_grad=0.001", "warmup_iterations=4")
    state = build_state(config, CPU)

    result = train_step(state, noise(), config, SPACING)

    norms = [p.grad.norm() for p in state.model.parameters() if p.grad is not None]
    assert result.gradient_norm > 0.001
    assert torch.stack(norms).norm() == pytest.approx(0.001, rel=1e-3)
    assert state.optimizer.param_groups[0]["lr"] == pytest.approx(3e-4 / 4)
    for _ in range(3):
        train_step(state, noise(), config, SPACING)
    assert state.optimizer.param_groups[0]["lr"] == pytest.approx(3e-4)


def test_what_is_logged_has_its_names():
    config = small_config()
    result = train_step(build_state(config, CPU), noise(), config, SPACING)
    scalars = result.scalars()
    assert list(scalars) == [
        *("loss", "l_r", "l_dv", "l_st"),
        *("spread cls", "spread S", "spread T"),
        *("gradient norm", "rejected", "unmatched", "content"),
    ]
    assert scalars["spread S"] is result.spreads["S"] and scalars["rejected"] == 0.5


def test_a_step_whose_loss_is_no_number_is_skipped():
    config = small_config()
    state = build_state(config, CPU)
    train_step(state, noise(), config, SPACING)
    weights = copy.deepcopy(state.model.state_dict())
    moments = copy.deepcopy(state.optimizer.state_dict()["state"])

    result = train_step(state, spoiled(), config, SPACING)
    train_step(state, spoiled(), config, SPACING)

    assert not result.finite and not torch.isfinite(result.loss)
    assert (state.step, state.nonfinite) == (3, 2)
    assert all(torch.equal(weights[n], v) for n, v in state.model.state_dict().items())
    for weight, numbers in state.optimizer.state_dict()["state"].items():
        assert all(torch.equal(moments[weight][n], v) for n, v in numbers.items())

    result = train_step(state, noise(), config, SPACING)
    assert result.finite and torch.isfinite(result.loss)
    assert (state.step, state.nonfinite) == (4, 0)


@pytest.mark.parametrize("similarity", ["cosine", "dino", "place"])
def test_a_batch_in_parts_is_the_same_step(similarity):
    settings = (*FROZEN, f"similarity={similarity}")
    if similarity == "place":
        settings = (*FROZEN, "dv_by=place", "temperature=0.1", "weight_an=2", "memory=6")
    states = []
    results = []
    for parts in (1, 2):
        config = small_config(f"accumulate={parts}", *settings)
        state = build_state(config, CPU)
        train_step(state, noise(1), config, SPACING)  # moves the centers
        states.append(state)
        batch = noise()
        batch.query[1, :, 16:] = 0  # air, of which the two parts have different shares
        results.append(train_step(state, batch, config, SPACING))

    assert list(results[0].second_moments) == ["cls", "S", "T", "H", "V"]
    for name, moments in results[0].second_moments.items():
        assert torch.allclose(results[1].second_moments[name], moments, atol=1e-5), name

    whole, parts = (result.scalars() for result in results)
    for name in whole:
        assert parts[name].item() == pytest.approx(whole[name].item(), rel=1e-4), name

    assert_same_gradients(gradients_of(states[1].model), gradients_of(states[0].model))
    for ours, theirs in zip(states[1].model.buffers(), states[0].model.buffers()):
        assert torch.allclose(ours, theirs, atol=1e-6)


def test_validation_is_repeatable_and_changes_nothing():
    config = small_config("head=byol", "similarity=dino")
    state = build_state(config, CPU)
    before = {name: value.clone() for name, value in state.model.state_dict().items()}

    first, _ = validate(state, [noise(0), noise(1)], config, SPACING)
    second, _ = validate(state, [noise(0), noise(1)], config, SPACING)

    assert first == second and set(first) == {"l_r", "l_dv", "l_st"}
    assert all(torch.equal(before[name], v) for name, v in state.model.state_dict().items())


@pytest.mark.parametrize("blocks", ["plain", "recomputed", "compiled"])
def test_the_encoder_gradients_are_those_of_each_weighted_loss_alone(blocks):
    recompute = blocks == "recomputed"
    config = small_config("weight_st=0.5", f"checkpoint_blocks={str(recompute).lower()}")
    state = build_state(config, CPU)
    if blocks == "compiled":
        compile_blocks(state.model, Block, backend="aot_eager")
        train_step(state, noise(), config, SPACING)
        state.model.zero_grad()
    norms = encoder_gradients(state, noise(), config, SPACING)
    assert all(parameter.grad is None for parameter in state.model.parameters())

    weights = {"l_r": 10.0, "l_dv": 1.0, "l_st": 0.5}
    assert list(norms) == list(weights)
    for name, weight in weights.items():
        state.model.zero_grad()
        generator = generator_at(config.seed, VALIDATION, 0, CPU)
        output = state.model(*views_of(noise(), state.model, Drawing(generator, SPACING)))
        (weight * output.losses[name]).backward()
        squares = [p.grad.square().sum() for p in state.model.encoder.parameters()]
        assert norms[name] == pytest.approx(sum(squares).sqrt().item(), rel=1e-4)


def test_it_learns_to_reconstruct_one_pair():
    """Real learning: on one pair of crops with structure the reconstruction error falls clearly."""
    config = small_config(
        *("iterations=80", "lr=0.003", "decoder_width=96", "width=96"),
        *("weight_dv=0", "weight_st=0"),
    )
    state = build_state(config, CPU)
    z, y, x = torch.meshgrid(*[torch.linspace(0, 3.14, 32)] * 3, indexing="ij")
    crop = (torch.sin(3 * z + 1) * torch.cos(2 * y) * torch.sin(x)).expand(2, 1, 32, 32, 32)
    pair = pair_batch(crop, crop.flip(2))

    losses = [train_step(state, pair, config, SPACING).losses["l_r"].item() for _ in range(80)]

    assert np.mean(losses[-5:]) < 0.75 * np.mean(losses[:3])
