"""UNETR against MONAI's with equal weights, and what ours can do beside it."""

import pytest
import torch
from monai.networks.nets import UNETR as MonaiUNETR

from alice_nnunet.errors import UserError
from alice_nnunet.networks.published.unetr import from_monai, to_monai
from alice_nnunet.networks.unetr import UNETR, strides

IDENTITY = {"scale": [1.0], "shift": [0.0], "low": [None], "high": [None], "flip_axes": []}
WINDOW = {"scale": [1.0], "shift": [0.0], "low": [0.0], "high": [1.0], "flip_axes": []}


def unetr(
    depth: int = 4,
    crop=(32, 32, 32),
    input_map=IDENTITY,
    channels: int = 1,
    token=(16, 16, 16),
) -> UNETR:
    arguments = {
        "in_channels": 1,
        "crop_size": list(crop),
        "width": 48,
        "depth": depth,
        "heads": 3,
        "token": token,
    }
    return UNETR(channels, 3, arguments, input_map).eval()


@pytest.fixture(scope="module")
def twins() -> tuple[UNETR, MonaiUNETR]:
    """Ours, and MONAI's with our weights. Its UNETR has 12 blocks whatever it is told."""
    torch.manual_seed(0)
    ours = unetr(depth=12, crop=(32, 48, 64))
    monai = MonaiUNETR(1, 3, (32, 48, 64), hidden_size=48, mlp_dim=192, num_heads=3).eval()
    monai.load_state_dict(to_monai(ours.state_dict()), strict=True)
    return ours, monai


@torch.no_grad()
def test_equals_monai_with_equal_weights(twins):
    ours, monai = twins
    image = torch.randn(2, 1, 32, 48, 64)
    torch.testing.assert_close(ours(image), monai(image), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_monai_weights_load_into_ours_and_every_tensor_counts():
    monai = MonaiUNETR(1, 3, (32, 48, 64), hidden_size=48, mlp_dim=192, num_heads=3).eval()
    ours = unetr(depth=12, crop=(32, 48, 64))
    converted = from_monai(monai.state_dict())
    ours.load_state_dict(converted, strict=True)
    # norm_cross_attn of 12 blocks, which MONAI's UNETR never uses
    assert len(monai.state_dict()) - len(converted) == 24
    image = torch.randn(1, 1, 32, 48, 64)
    torch.testing.assert_close(ours(image), monai(image), rtol=1e-4, atol=1e-4)


def test_conversion_there_and_back_changes_nothing(twins):
    weights = twins[0].state_dict()
    again = from_monai(to_monai(weights))
    assert list(again) == list(weights) and all(torch.equal(again[k], weights[k]) for k in weights)


def test_a_foreign_tensor_is_refused():
    for convert in (to_monai, from_monai):
        with pytest.raises(ValueError, match=r"swinViT\.bias is not a tensor of UNETR"):
            convert({"swinViT.bias": torch.zeros(1)})


@pytest.mark.parametrize("depth", [1, 2])
def test_an_encoder_with_features_at_fewer_than_four_depths_is_refused(depth):
    with pytest.raises(UserError, match=rf"at least 3, .* this encoder has depth {depth}"):
        unetr(depth=depth)
    assert unetr(depth=3)(torch.rand(1, 1, 16, 16, 16)).shape == (1, 3, 16, 16, 16)


@torch.no_grad()
@pytest.mark.parametrize("size", [(16, 16, 16), (32, 48, 64), (21, 33, 40), (5, 50, 17)])
def test_any_patch_size(size):
    assert unetr()(torch.rand(1, 1, *size)).shape == (1, 3, *size)


@torch.no_grad()
def test_padding_is_the_floor_of_the_window_at_the_end():
    network = unetr(input_map={**WINDOW, "scale": [0.1], "shift": [0.3]})
    image = torch.rand(1, 1, 20, 32, 30)
    floor = torch.full((1, 1, 32, 32, 32), -3.0)  # 0.1 * -3 + 0.3 = 0
    floor[:, :, :20, :32, :30] = image
    torch.testing.assert_close(network(image), network(floor)[:, :, :20, :32, :30])


@torch.no_grad()
def test_encoder_sees_the_window_and_the_stem_what_lies_outside():
    network = unetr(input_map=WINDOW)
    image = torch.rand(1, 1, 32, 32, 32)
    brighter = image.clone()
    image[..., 4, 4, 4] = 1.0
    brighter[..., 4, 4, 4] = 2.5

    clamped = [network.input_map.clamp(network.input_map(i)) for i in (image, brighter)]
    assert torch.equal(*clamped) and torch.equal(*(network.encoder(c) for c in clamped))
    assert not torch.equal(network(image), network(brighter))


@torch.no_grad()
def test_flipped_axes_give_the_flipped_result():
    torch.manual_seed(0)
    plain = unetr()
    turned = unetr(input_map={**IDENTITY, "flip_axes": [1, 2]})
    turned.load_state_dict(plain.state_dict())
    image = torch.rand(1, 1, 32, 30, 20)
    torch.testing.assert_close(turned(image.flip(3, 4)), plain(image).flip(3, 4))


def test_every_parameter_gets_a_gradient():
    network = unetr(channels=2, input_map={k: v * 2 for k, v in WINDOW.items()})
    network(torch.rand(1, 2, 32, 32, 32)).square().mean().backward()
    assert [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []


SMALLER_TOKENS = [(8, 8, 8), (8, 16, 16), (16, 8, 8), (16, 16, 8)]


@pytest.mark.parametrize("token", SMALLER_TOKENS)
def test_smaller_tokens_give_any_patch_size_and_every_gradient(token):
    network = unetr(token=token)
    logits = network(torch.rand(1, 1, 21, 33, 40))
    assert logits.shape == (1, 3, 21, 33, 40)
    logits.square().mean().backward()
    assert [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []


@torch.no_grad()
@pytest.mark.parametrize("token", [(16, 16, 16), *SMALLER_TOKENS])
def test_decoder_enlarges_features_of_a_token_to_its_voxels(token):
    """The sizes after each stage, computed from the token alone."""
    network = unetr(token=token, crop=(64, 64, 64))
    first, last = strides(token)
    for axis in range(3):
        assert first[axis] * 2 * 2 * last == token[axis]

    sizes = []
    for part in (network.merge8, network.merge4, network.merge2, network.merge1):
        part.register_forward_hook(lambda _, inputs, output: sizes.append(tuple(output.shape[2:])))
    network(torch.rand(1, 1, 64, 64, 64))

    at_tokens = tuple(64 // edge for edge in token)
    assert sizes[0] == tuple(n * last for n in at_tokens)
    assert sizes[1] == tuple(n * last * 2 for n in at_tokens)
    assert sizes[2] == tuple(n * last * 4 for n in at_tokens)
    assert sizes[3] == (64, 64, 64)
