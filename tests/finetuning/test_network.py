"""The alice block, the network it describes, and loading an encoder into it."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from alice_nnunet.errors import UserError
from alice_nnunet.finetuning.block import (
    AliceBlock,
    block_from_entries,
    make_block,
    with_positions,
)
from alice_nnunet.finetuning.network import build_network, load_encoder, spread_stem
from alice_nnunet.finetuning.pretrained import PretrainedEncoder
from alice_nnunet.finetuning.recipes import RECIPES
from alice_nnunet.model.encoders.registry import build_encoder
from tests.helpers.finetuning import CROP, pretrained_encoder, stock_plans

PET = {"mean": 1.0, "std": 2.0, "percentile_00_5": 0.0, "percentile_99_5": 9.0}


def block_for(encoder: PretrainedEncoder, channels: int = 1, flips=()) -> AliceBlock:
    """The block for a dataset of several channels of CT."""
    ct = stock_plans()["foreground_intensity_properties_per_channel"]["0"]
    statistics = {str(index): ct for index in range(channels)}
    recipe = RECIPES["vit"].recipe
    return make_block(encoder, ["CTNormalization"] * channels, statistics, recipe, list(flips))


def test_block_maps_the_plans_intensities_to_the_window():
    block = block_for(pretrained_encoder(), flips=[1, 2])
    assert block.input["scale"] == [41.0 / 380] and block.input["flip_axes"] == [1, 2]
    np.testing.assert_allclose(block.input["shift"], [(83.0 + 125) / 380])
    assert (block.input["low"], block.input["high"]) == ([0.0], [1.0])


def test_a_block_is_plain_data_in_plans_and_read_back():
    block = block_for(pretrained_encoder())
    entries = block.as_entries()
    assert entries["weights"] == "/c.pth" and entries["recipe"]["optimizer"] == "AdamW"
    assert "batch_size" not in entries["recipe"] and "accepted_spacing" not in entries

    asked = replace(block, other_channels=(1,), accepted_spacing=(2.0, 1.0, 1.0))
    for one in (block, asked):
        assert block_from_entries(json.loads(json.dumps(one.as_entries()))) == one


def test_channel_without_a_window_passes_unchanged():
    channel = {"name": "MR", "scheme": "ZScoreNormalization", "window": None}
    block = block_for(pretrained_encoder(channels=[channel]))
    assert block.input == {
        "scale": [1.0],
        "shift": [0.0],
        "low": [None],
        "high": [None],
        "flip_axes": [],
    }


def test_every_encoder_tensor_is_loaded_and_reported():
    encoder = pretrained_encoder()
    network = build_network(block_for(encoder), 1, 4)
    lines = load_encoder(network, encoder)

    weights = encoder.weights
    loaded = network.encoder.state_dict()
    assert all(torch.equal(loaded[name], weights[name]) for name in weights)

    decoder = len(network.state_dict()) - len(weights)
    assert lines == [
        f"Loaded {len(weights)} of {len(weights)} encoder tensors from /c.pth (sha256 {'ab' * 32})",
        "Not loaded: none",
        f"Random: {decoder} decoder tensors",
    ]
    assert network(torch.rand(1, 1, *CROP)).shape == (1, 4, *CROP)


def test_positions_keep_their_distance_in_another_patch():
    """Crop (16, 32, 32), grid (1, 2, 2); patch (20, 60, 32), grid (2, 4, 2)."""
    encoder = pretrained_encoder()
    encoder.weights["positions"] += torch.randn(1, 4, 192)
    block = with_positions(block_for(encoder), (20, 60, 32), encoder.data["spacing"])
    assert block.network_arguments["positions"] == {"size": [32, 64, 32], "pitch": [1, 1, 1]}

    network = build_network(block, 1, 2)
    load_encoder(network, encoder)
    moved = network.encoder.positions.view(2, 4, 2, 192)
    trained = encoder.weights["positions"].view(1, 2, 2, 192)
    # (old - new) / 2 is -1/2 along z, where the first of two tokens is one before the old one.
    torch.testing.assert_close(moved[1:, 1:3], trained, rtol=0, atol=1e-5)
    assert network(torch.rand(1, 1, 20, 60, 32)).shape == (1, 2, 20, 60, 32)

    # Plans of earlier versions say nothing of positions: these are stretched, as they were.
    before = build_network(block_for(encoder), 1, 2)
    load_encoder(before, encoder)
    assert torch.equal(before.encoder.positions, encoder.weights["positions"])


def test_positions_of_smaller_tokens_are_of_their_grid():
    encoder = pretrained_encoder()
    arguments = {**encoder.arguments, "token": [8, 8, 8]}
    weights = build_encoder("vit", arguments).state_dict()
    encoder = replace(encoder, arguments=arguments, weights=weights)
    block = with_positions(block_for(encoder), (20, 60, 32), encoder.data["spacing"])
    assert block.network_arguments["positions"] == {"size": [24, 64, 32], "pitch": [1, 1, 1]}

    network = build_network(block, 1, 2)
    load_encoder(network, encoder)
    moved = network.encoder.positions.view(3, 8, 4, -1)
    trained = encoder.weights["positions"].view(2, 4, 4, -1)
    # (new - old) / 2 is 1/2 along z and 2 along y.
    torch.testing.assert_close(moved[1:, 2:6], trained, rtol=0, atol=1e-5)


def test_positions_follow_the_spacing_only_where_it_differs():
    encoder = pretrained_encoder()
    for spacing, pitch in (([3.1, 2.95, 3.0], [1, 1, 1]), ([1.5, 6.0, 3.0], [0.5, 2, 1])):
        block = with_positions(block_for(encoder), CROP, spacing)
        assert block.network_arguments["positions"]["pitch"] == pitch
    swin = block_for(pretrained_encoder(encoder="swin"))
    assert with_positions(swin, CROP, [1.5, 6.0, 3.0]) == swin


@pytest.mark.parametrize("name", ["swin", "nnformer"])
def test_offsets_that_no_crop_had_take_the_bias_of_the_nearest(name):
    """Crop (16, 32, 32): fewer tokens than the windows of 4 have along z, in the last stage."""
    encoder = pretrained_encoder(encoder=name)
    network = build_network(block_for(encoder), 1, 2)
    load_encoder(network, encoder)

    seen = 0
    for number, stage in enumerate(network.encoder.stages):
        tokens = [min(4, t) for t in network.encoder.stage_grid(number)]
        key = f"stages.{number}.blocks.0.attention.bias"
        before = encoder.weights[key].view(7, 7, 7, -1)
        after = stage.blocks[0].attention.bias.view(7, 7, 7, -1)

        for place in np.ndindex(7, 7, 7):
            offset = [p - 3 for p in place]
            near = [max(1 - t, min(t - 1, o)) + 3 for o, t in zip(offset, tokens)]
            assert torch.equal(after[place], before[tuple(near)])
        seen += tokens != [4, 4, 4]
    assert seen


def test_the_decoder_is_as_wide_as_the_preset_asks():
    for preset, width in (("tiny", 8), ("paper", 16)):
        network = build_network(block_for(pretrained_encoder(preset=preset)), 1, 4)
        assert network.out.conv.conv.in_channels == width


def test_whatever_does_not_fit_is_listed_and_nothing_is_loaded():
    encoder = pretrained_encoder()
    network = build_network(block_for(encoder), 1, 2)
    before = network.encoder.norm.weight.clone()

    weights = encoder.weights
    del weights["norm.bias"]
    weights["norm.weight"] = torch.full((192,), 5.0)
    weights["cls_token"] = torch.zeros(1)
    weights["positions"] = weights["positions"][:, 1:]

    with pytest.raises(UserError) as caught:
        load_encoder(network, encoder)
    for text in (
        "norm.bias is missing",
        "cls_token is unexpected",
        "positions has shape (1, 3, 192)",
        "(1, 4, 192)",
    ):
        assert text in str(caught.value)
    assert torch.equal(network.encoder.norm.weight, before)


def test_stem_of_one_channel_is_repeated_and_divided():
    encoder = pretrained_encoder()
    one = build_network(block_for(encoder), 1, 2)
    three = build_network(block_for(encoder, 3), 3, 2)
    load_encoder(one, encoder)
    load_encoder(three, encoder)

    kernel = one.encoder.patch_embed.weight
    spread = three.encoder.patch_embed.weight
    for channel in range(3):
        torch.testing.assert_close(spread[:, channel], kernel[:, 0] / 3)

    image = torch.rand(1, 1, *CROP)
    torch.testing.assert_close(
        three.encoder(image.repeat(1, 3, 1, 1, 1)), one.encoder(image), rtol=1e-4, atol=1e-5
    )


def test_a_first_layer_spread_by_hand():
    """The kernel 6, 2 over the images 1, 2 and 3, 4.

    Over both: 3 * 1 + 1 * 2 + 3 * 3 + 1 * 4 = 18. If the second is new: 6 * 1 + 2 * 2 = 10.
    """
    weights = {"stem": torch.tensor([6.0, 2.0]).view(1, 1, 1, 1, 2)}
    images = torch.tensor([1.0, 2.0, 3.0, 4.0]).view(1, 2, 1, 1, 2)

    both = spread_stem(weights, "stem", 2)["stem"]
    assert both.flatten().tolist() == [3.0, 1.0, 3.0, 1.0]
    assert torch.nn.functional.conv3d(images, both).item() == 18.0

    first = spread_stem(weights, "stem", 2, [1])["stem"]
    assert torch.nn.functional.conv3d(images, first).item() == 10.0

    two_of_three = spread_stem(weights, "stem", 3, [1])["stem"]
    assert two_of_three.flatten().tolist() == [3.0, 1.0, 0.0, 0.0, 3.0, 1.0]

    own = spread_stem({"stem": torch.ones(1, 2, 1, 1, 1)}, "stem", 2, [0])["stem"]
    assert own.flatten().tolist() == [0.0, 1.0]


@pytest.mark.parametrize("name", ["vit", "swin", "nnformer"])
def test_two_channels_give_what_their_mean_gives_in_one(name):
    """The first layer is linear. A channel that the pretraining did not see adds nothing."""
    encoder = pretrained_encoder(encoder=name)
    alone = build_encoder(name, encoder.arguments)
    alone.load_state_dict(encoder.weights)
    images = torch.rand(1, 2, *CROP)

    for others, same in (((), images.mean(1, keepdim=True)), ((1,), images[:, :1])):
        network = build_network(block_for(encoder, 2), 2, 2)
        load_encoder(network, encoder, others)
        torch.testing.assert_close(network.encoder(images), alone(same), rtol=1e-4, atol=1e-4)


def test_a_channel_that_the_pretraining_did_not_see_passes_as_nnunet_normalises_it_and_is_learned():
    encoder = pretrained_encoder()
    block = make_block(
        encoder,
        ["CTNormalization", "ZScoreNormalization"],
        {**stock_plans()["foreground_intensity_properties_per_channel"], "1": PET},
        RECIPES["vit"].recipe,
        [],
    )
    assert block.other_channels == (1,)
    assert block.input["scale"] == [41.0 / 380, 1.0] and block.input["high"] == [1.0, None]

    network = build_network(block, 2, 2)
    load_encoder(network, encoder, block.other_channels)
    ct = torch.rand(1, 1, *CROP)
    first = network.encoder(torch.cat([ct, torch.randn(1, 1, *CROP)], 1))
    second = network.encoder(torch.cat([ct, torch.randn(1, 1, *CROP)], 1))
    torch.testing.assert_close(first, second)

    network(torch.rand(1, 2, *CROP)).square().mean().backward()
    assert network.encoder.patch_embed.weight.grad[:, 1].abs().sum() > 0


def test_block_of_other_channels_or_another_encoder_is_refused():
    encoder = pretrained_encoder()
    block = block_for(encoder)
    with pytest.raises(UserError, match="for 1 channels and the dataset has 2"):
        build_network(block, 2, 2)

    foreign = replace(block, origin=replace(block.origin, name="resnet"))
    with pytest.raises(UserError, match="'resnet'"):
        build_network(foreign, 1, 2)
    with pytest.raises(UserError, match=r"'resnet'.*vit"):
        block_for(replace(encoder, name="resnet"))


@pytest.mark.parametrize("name, levels", [("vit", 1), ("swin", 1), ("nnformer", 2)])
@pytest.mark.parametrize("channels", [1, 2])
def test_every_encoder_has_a_network_and_outputs_for_deep_supervision(name, levels, channels):
    encoder = pretrained_encoder(encoder=name)
    encoder.data["channels"] *= channels
    block = block_for(encoder, channels)

    network = build_network(block, channels, 3, deep_supervision=True)
    lines = load_encoder(network, encoder)
    assert lines[1] == "Not loaded: none" and block.output_levels == levels

    image = torch.rand(1, 1, *CROP)
    repeated = image.expand(-1, channels, -1, -1, -1)
    outputs = network(repeated) if levels > 1 else [network(repeated)]
    assert [tuple(output.shape) for output in outputs] == [
        (1, 3, *(size // 2**level for size in CROP)) for level in range(levels)
    ]

    predicting = build_network(block, channels, 3)
    predicting.load_state_dict(network.state_dict(), strict=True)
    assert torch.is_tensor(predicting(repeated))

    # several channels start as the one of the pretraining repeated
    alone = build_encoder(name, encoder.arguments)
    alone.load_state_dict(encoder.weights)
    torch.testing.assert_close(network.encoder(repeated), alone(image), rtol=1e-4, atol=1e-4)
