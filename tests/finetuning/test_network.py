"""The alice block, the network it describes, and loading an encoder into it."""

import numpy as np
import pytest
import torch

from alice_nnunet.errors import UserError
from alice_nnunet.finetuning.network import (
    alice_block,
    build_network,
    load_encoder,
    output_levels,
    spread_stem,
)
from alice_nnunet.model.encoders.registry import build_encoder
from alice_nnunet.finetuning.recipes import RECIPES, training_recipe
from tests.helpers.finetuning import CROP, pretraining_checkpoint, pretraining_data, stock_plans


def block_for(checkpoint: dict, channels: int = 1, flips=()) -> dict:
    plans = stock_plans()
    plans["configurations"]["3d_fullres"]["normalization_schemes"] *= channels
    plans["foreground_intensity_properties_per_channel"] = {
        str(i): plans["foreground_intensity_properties_per_channel"]["0"] for i in range(channels)
    }
    return alice_block(
        checkpoint,
        "/c.pth",
        "ab" * 32,
        plans,
        plans["configurations"]["3d_fullres"],
        training_recipe(RECIPES["vit"]),
        list(flips),
    )


def load(network, checkpoint) -> list[str]:
    return load_encoder(network, "vit", checkpoint, "/c.pth", "ab" * 32)


def test_block_maps_the_plans_intensities_to_the_window():
    block = block_for(pretraining_checkpoint(), flips=[1, 2])
    assert block["input"]["scale"] == [41.0 / 380] and block["input"]["flip_axes"] == [1, 2]
    np.testing.assert_allclose(block["input"]["shift"], [(83.0 + 125) / 380])
    assert (block["input"]["low"], block["input"]["high"]) == ([0.0], [1.0])
    assert (
        block["weights"] == "/c.pth"
        and block["recipe"]["optimizer"] == "AdamW"
        and "batch_size" not in block["recipe"]
    )


def test_channel_without_a_window_passes_unchanged():
    data = pretraining_data(
        channels=[{"name": "MR", "scheme": "ZScoreNormalization", "window": None}]
    )
    block = block_for({**pretraining_checkpoint(), "data": data})
    assert block["input"] == {
        "scale": [1.0],
        "shift": [0.0],
        "low": [None],
        "high": [None],
        "flip_axes": [],
    }


def test_every_encoder_tensor_is_loaded_and_reported():
    checkpoint = pretraining_checkpoint()
    network = build_network(block_for(checkpoint), 1, 4)
    lines = load(network, checkpoint)
    weights = checkpoint["network_weights"]
    assert all(torch.equal(network.encoder.state_dict()[name], weights[name]) for name in weights)
    decoder = len(network.state_dict()) - len(weights)
    assert lines == [
        f"Loaded {len(weights)} of {len(weights)} encoder tensors from /c.pth (sha256 {'ab' * 32})",
        "Not loaded: none",
        f"Random: {decoder} decoder tensors",
    ]
    assert network(torch.rand(1, 1, *CROP)).shape == (1, 4, *CROP)


def test_the_decoder_is_as_wide_as_the_preset_asks():
    narrow, wide = (
        block_for(pretraining_checkpoint(preset=preset)) for preset in ("tiny", "paper")
    )
    assert (
        build_network(narrow, 1, 4).out.conv.conv.in_channels == 8
        and build_network(wide, 1, 4).out.conv.conv.in_channels == 16
    )


def test_whatever_does_not_fit_is_listed_and_nothing_is_loaded():
    checkpoint = pretraining_checkpoint()
    network = build_network(block_for(checkpoint), 1, 2)
    before = network.encoder.norm.weight.clone()
    weights = checkpoint["network_weights"]
    del weights["norm.bias"]
    weights["norm.weight"], weights["cls_token"] = torch.full((192,), 5.0), torch.zeros(1)
    weights["positions"] = weights["positions"][:, 1:]
    with pytest.raises(UserError) as caught:
        load(network, checkpoint)
    for text in (
        "norm.bias is missing",
        "cls_token is unexpected",
        "positions has shape (1, 3, 192)",
        "(1, 4, 192)",
    ):
        assert text in str(caught.value)
    assert torch.equal(network.encoder.norm.weight, before)


def test_stem_of_one_channel_is_repeated_and_divided():
    checkpoint = pretraining_checkpoint()
    one, three = (
        build_network(block_for(checkpoint), 1, 2),
        build_network(block_for(checkpoint, 3), 3, 2),
    )
    load(one, checkpoint)
    load(three, checkpoint)
    kernel, spread = one.encoder.patch_embed.weight, three.encoder.patch_embed.weight
    for channel in range(3):
        torch.testing.assert_close(spread[:, channel], kernel[:, 0] / 3)
    image = torch.rand(1, 1, *CROP)
    torch.testing.assert_close(
        three.encoder(image.repeat(1, 3, 1, 1, 1)), one.encoder(image), rtol=1e-4, atol=1e-5
    )


def test_a_first_layer_spread_by_hand():
    """The kernel 6, 2 over the images 1, 2 and 3, 4: 3 * 1 + 1 * 2 + 3 * 3 + 1 * 4 = 18; where the second is new, 6 * 1 + 2 * 2 = 10."""
    weights, images = (
        {"stem": torch.tensor([6.0, 2.0]).view(1, 1, 1, 1, 2)},
        torch.tensor([1.0, 2.0, 3.0, 4.0]).view(1, 2, 1, 1, 2),
    )
    assert spread_stem(weights, "stem", 2)["stem"].flatten().tolist() == [3.0, 1.0, 3.0, 1.0]
    assert (
        torch.nn.functional.conv3d(images, spread_stem(weights, "stem", 2)["stem"]).item() == 18.0
    )
    assert (
        torch.nn.functional.conv3d(images, spread_stem(weights, "stem", 2, [1])["stem"]).item()
        == 10.0
    )
    assert spread_stem(weights, "stem", 3, [1])["stem"].flatten().tolist() == [
        3.0,
        1.0,
        0.0,
        0.0,
        3.0,
        1.0,
    ]
    assert spread_stem({"stem": torch.ones(1, 2, 1, 1, 1)}, "stem", 2, [0])[
        "stem"
    ].flatten().tolist() == [0.0, 1.0]


@pytest.mark.parametrize("encoder", ["vit", "swin", "nnformer"])
def test_two_channels_give_what_their_mean_gives_in_one(encoder):
    """The first layer is linear, whichever encoder it is of; of a channel that the pretraining did not see, nothing."""
    checkpoint, images = pretraining_checkpoint(encoder=encoder), torch.rand(1, 2, *CROP)
    for others, same in (((), images.mean(1, keepdim=True)), ((1,), images[:, :1])):
        network = build_network(block_for(checkpoint, 2), 2, 2)
        load_encoder(network, encoder, checkpoint, "/c.pth", "ab" * 32, others)
        alone = build_encoder(encoder, checkpoint["config"]["encoder_arguments"])
        alone.load_state_dict(checkpoint["network_weights"])
        torch.testing.assert_close(network.encoder(images), alone(same), rtol=1e-4, atol=1e-4)


def test_a_channel_that_the_pretraining_did_not_see_passes_as_nnunet_normalises_it_and_is_learned():
    checkpoint = pretraining_checkpoint()
    plans = stock_plans()
    plans["configurations"]["3d_fullres"]["normalization_schemes"] = [
        "CTNormalization",
        "ZScoreNormalization",
    ]
    plans["foreground_intensity_properties_per_channel"]["1"] = {
        "mean": 1.0,
        "std": 2.0,
        "percentile_00_5": 0.0,
        "percentile_99_5": 9.0,
    }
    block = alice_block(
        checkpoint,
        "/c.pth",
        "ab" * 32,
        plans,
        plans["configurations"]["3d_fullres"],
        training_recipe(RECIPES["vit"]),
        [],
    )
    assert (
        block["other_channels"] == [1]
        and block["input"]["scale"] == [41.0 / 380, 1.0]
        and block["input"]["high"] == [1.0, None]
    )
    network = build_network(block, 2, 2)
    load_encoder(network, "vit", checkpoint, "/c.pth", "ab" * 32, block["other_channels"])
    ct = torch.rand(1, 1, *CROP)
    first, second = (
        network.encoder(torch.cat([ct, torch.randn(1, 1, *CROP)], 1)) for _ in range(2)
    )
    torch.testing.assert_close(first, second)
    network(torch.rand(1, 2, *CROP)).square().mean().backward()
    assert network.encoder.patch_embed.weight.grad[:, 1].abs().sum() > 0


def test_block_of_other_channels_or_another_encoder_is_refused():
    checkpoint = pretraining_checkpoint()
    with pytest.raises(UserError, match="for 1 channels and the dataset has 2"):
        build_network(block_for(checkpoint), 2, 2)
    with pytest.raises(UserError, match="'resnet'"):
        build_network({**block_for(checkpoint), "encoder": "resnet"}, 1, 2)
    checkpoint["config"]["encoder"] = "resnet"
    with pytest.raises(UserError, match="'resnet'.*vit"):
        block_for(checkpoint)


@pytest.mark.parametrize("encoder, levels", [("vit", 1), ("swin", 1), ("nnformer", 2)])
@pytest.mark.parametrize("channels", [1, 2])
def test_every_encoder_has_a_network_and_outputs_for_deep_supervision(encoder, levels, channels):
    checkpoint = pretraining_checkpoint(encoder=encoder)
    checkpoint["data"]["channels"] *= channels
    block = block_for(checkpoint, channels)
    network = build_network(block, channels, 3, deep_supervision=True)
    lines = load_encoder(network, encoder, checkpoint, "/c.pth", "ab" * 32)
    assert lines[1] == "Not loaded: none" and output_levels(block) == levels
    image = torch.rand(1, 1, *CROP)
    outputs = network(image.expand(-1, channels, -1, -1, -1))
    assert [tuple(o.shape) for o in (outputs if levels > 1 else [outputs])] == [
        (1, 3, *(c // 2**i for c in CROP)) for i in range(levels)
    ]
    predicting = build_network(block, channels, 3)
    predicting.load_state_dict(network.state_dict(), strict=True)
    assert torch.is_tensor(predicting(image.expand(-1, channels, -1, -1, -1)))
    # several channels start as the one of the pretraining repeated
    alone = build_encoder(encoder, block["encoder_arguments"])
    alone.load_state_dict(checkpoint["network_weights"])
    torch.testing.assert_close(
        network.encoder(image.expand(-1, channels, -1, -1, -1)), alone(image), rtol=1e-4, atol=1e-4
    )
