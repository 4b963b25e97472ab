"""Groups of parameters and their learning rates, against names and powers written out by hand."""

from dataclasses import replace

import pytest
import torch

from alice_nnunet.finetuning.network import NETWORKS
from alice_nnunet.finetuning.optimizers import (
    build_optimizer,
    encoder_depths,
    group_rates,
    parameter_groups,
)
from alice_nnunet.finetuning.recipes import RECIPES, changed_recipe
from alice_nnunet.model.presets import PRESETS
from alice_nnunet.schedules import EpochSchedule

INPUT = {"scale": [1.0], "shift": [0.0], "low": [0.0], "high": [1.0], "flip_axes": []}
# Tensors of the tiny presets and how many factors of layer_decay they are below the decoder.
# The ViT has 4 blocks, the others three stages of 2.
FACTORS = {
    "vit": {
        "encoder.patch_embed.weight": 5,
        "encoder.positions": 5,
        "encoder.blocks.0.norm1.weight": 4,
        "encoder.blocks.3.mlp.2.bias": 1,
        "encoder.norm.weight": 1,
        "stem.layer.conv1.conv.weight": 0,
        "out.conv.conv.bias": 0,
    },
    "swin": {
        "encoder.patch_embed.weight": 7,
        "encoder.stages.0.blocks.0.norm1.weight": 6,
        "encoder.stages.0.blocks.1.attention.bias": 5,
        "encoder.merges.0.norm.weight": 5,
        "encoder.stages.1.blocks.0.norm2.bias": 4,
        "encoder.merges.2.reduction.weight": 1,
        "encoder.stages.2.blocks.1.mlp.0.weight": 1,
        "bottom.layer.conv1.conv.weight": 0,
        "stem.layer.conv1.conv.weight": 0,
    },
    "nnformer": {
        "encoder.patch_embed.convolutions.0.weight": 7,
        "encoder.patch_embed.norms.3.bias": 7,
        "encoder.stages.2.blocks.0.norm1.bias": 2,
        "encoder.merges.1.reduction.weight": 3,
        "encoder.norm.bias": 1,
        "stages.0.cross.attention.kv.weight": 0,
        "norms.1.weight": 0,
        "heads.0.weight": 0,
    },
}


def network_of(encoder: str) -> tuple[torch.nn.Module, list[int]]:
    """A tiny network and the depths of its encoder."""
    preset = PRESETS[encoder]["tiny"]
    arguments = {"in_channels": 1, "crop_size": [16, 32, 32], **preset.encoder}
    with torch.device("meta"):
        network = NETWORKS[encoder](1, 2, arguments, INPUT, **preset.network)
    return network, encoder_depths(arguments)


@pytest.mark.parametrize("encoder", FACTORS)
def test_rates_fall_by_a_factor_with_every_block(encoder):
    network, depths = network_of(encoder)
    recipe = changed_recipe(RECIPES[encoder].recipe, epochs=100, settings={"layer_decay": 0.75})
    groups = parameter_groups(network.named_parameters(), depths, 0.75, 0)
    optimizer = build_optimizer(groups, recipe)
    schedule = EpochSchedule(optimizer, group_rates(groups, recipe))
    schedule.step(recipe.warmup_epochs)  # the peak

    names = dict(network.named_parameters())
    rates = {
        id(parameter): group["lr"]
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(names) == len(rates)

    for name, factors in FACTORS[encoder].items():
        expected = recipe.learning_rate * 0.75**factors
        assert rates[id(names[name])] == pytest.approx(expected), name
    assert optimizer.param_groups[0]["lr"] == max(rates.values())  # what nnU-Net logs


def test_one_group_unless_asked_for():
    network, depths = network_of("vit")
    (group,) = parameter_groups(network.named_parameters(), depths, 1.0, 0)
    assert [id(p) for p in group.parameters] == [
        id(p) for p in network.parameters()
    ]  # as checkpoints of older trainings expect


def test_a_compiled_network_has_the_same_groups():
    network, depths = network_of("swin")
    plain = parameter_groups(network.named_parameters(), depths, 0.5, 3)
    compiled = parameter_groups(
        ((f"_orig_mod.{name}", p) for name, p in network.named_parameters()), depths, 0.5, 3
    )
    assert [(len(g.parameters), g.share, g.frozen_epochs) for g in plain] == [
        (len(g.parameters), g.share, g.frozen_epochs) for g in compiled
    ]


@pytest.mark.parametrize("encoder", ["vit", "nnformer"])  # AdamW, SGD with momentum
def test_a_frozen_encoder_has_rate_zero_and_then_the_schedules(encoder):
    network, depths = network_of(encoder)
    recipe = changed_recipe(RECIPES[encoder].recipe, epochs=100)
    groups = parameter_groups(network.named_parameters(), depths, 1.0, 7)
    rates = [[rate(epoch) for rate in group_rates(groups, recipe)] for epoch in range(100)]
    assert all(all(rate == 0 for rate in row[1:]) and row[0] > 0 for row in rates[:7])
    assert all(set(row) == {row[0]} for row in rates[7:])


@pytest.mark.parametrize("optimizer", ["AdamW", "SGD"])
def test_rate_zero_leaves_parameters_bit_identical(optimizer):
    torch.manual_seed(0)
    network = torch.nn.Linear(5, 5)
    before = [p.detach().clone() for p in network.parameters()]
    recipe = replace(RECIPES["nnformer"].recipe, optimizer=optimizer, weight_decay=0.1)
    groups = parameter_groups(
        ((f"encoder.{name}", p) for name, p in network.named_parameters()), [1], 1.0, 1
    )
    made = build_optimizer(groups, recipe)
    schedule = EpochSchedule(made, group_rates(groups, recipe))

    for _ in range(3):
        network(torch.randn(2, 5)).square().sum().backward()
        made.step()
    assert all(torch.equal(p, q) for p, q in zip(network.parameters(), before))

    schedule.step(1)
    made.step()
    assert not any(torch.equal(p, q) for p, q in zip(network.parameters(), before))
