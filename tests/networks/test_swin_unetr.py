"""Swin UNETR against MONAI's with equal weights, and what ours can do beside it."""

import re

import pytest
import torch
from monai.networks.nets import SwinUNETR as MonaiSwinUNETR

from alice_nnunet.networks.published.swin_unetr import from_monai, to_monai
from alice_nnunet.networks.swin_unetr import SwinUNETR

IDENTITY = {"scale": [1.0], "shift": [0.0], "low": [None], "high": [None], "flip_axes": []}
WINDOW = {**IDENTITY, "low": [0.0], "high": [1.0]}


def swin_unetr(
    stages: int = 2, window=(3, 3, 3), input_map=IDENTITY, channels: int = 1, **more
) -> SwinUNETR:
    """A small network, ready for inference."""
    arguments = {
        "in_channels": 1,
        "crop_size": [32, 32, 32],
        "embed_width": 12,
        "depths": [2] * stages,
        "heads": [3, 6, 12, 24][:stages],
        "windows": [list(window)] * stages,
        **more,
    }

    return SwinUNETR(channels, 3, arguments, input_map).eval()


@pytest.fixture(scope="module")
def twins() -> tuple[SwinUNETR, MonaiSwinUNETR]:
    """MONAI's with random weights, its bias tables too, and ours with the same."""
    torch.manual_seed(0)
    monai = MonaiSwinUNETR(1, 3, feature_size=12).eval()
    with torch.no_grad():
        for name, parameter in monai.named_parameters():
            parameter.add_(torch.randn_like(parameter) * (0.5 if "bias_table" in name else 0.02))
    ours = swin_unetr(4, (7, 7, 7), bug_compatible=True)
    ours.load_state_dict(from_monai(monai.state_dict()), strict=True)
    return ours, monai


@torch.no_grad()
@pytest.mark.parametrize("size", [(32, 64, 32), (32, 32, 96)])
def test_equals_monai_with_equal_weights(twins, size):
    ours, monai = twins
    image = torch.randn(1, 1, *size)
    torch.testing.assert_close(ours(image), monai(image), rtol=1e-4, atol=1e-4)


def test_ours_load_strictly_into_monais_class_there_and_back(twins):
    ours, _ = twins
    monai = MonaiSwinUNETR(1, 3, feature_size=12)
    monai.load_state_dict(to_monai(ours.state_dict(), (7, 7, 7)), strict=True)

    weights = ours.state_dict()
    again = from_monai(monai.state_dict())
    assert set(again) == set(weights) and all(torch.equal(again[k], weights[k]) for k in weights)


def test_the_right_bias_and_no_padding_differ_from_monai(twins):
    ours, monai = twins
    right = swin_unetr(4, (7, 7, 7))
    right.load_state_dict(ours.state_dict(), strict=True)
    image = torch.randn(1, 1, 32, 64, 32)
    with torch.no_grad():
        assert not torch.allclose(right(image), monai(image), atol=1e-3)


@pytest.mark.parametrize(
    "name",
    [
        "vit.norm.bias",
        "encoder.merges.0.attn",
        "swinViT.layers1c.0.x",
        "encoder.stages.0.blocks.0.gamma",
    ],
)
def test_a_foreign_tensor_is_refused(name):
    for convert in (lambda w: to_monai(w, (7, 7, 7)), from_monai):
        with pytest.raises(ValueError, match=f"^{re.escape(name)} is not a tensor of Swin UNETR"):
            convert({name: torch.zeros(1)})


@torch.no_grad()
@pytest.mark.parametrize("size", [(8, 8, 8), (21, 33, 14), (5, 40, 17)])
def test_any_patch_size(size):
    assert swin_unetr()(torch.rand(1, 1, *size)).shape == (1, 3, *size)


@torch.no_grad()
def test_patches_of_the_paper_and_of_one_axis_odd():
    with torch.device("meta"):
        network = swin_unetr(4, (7, 7, 7))
        for size in ((96, 96, 96), (96, 128, 128), (50, 160, 160)):
            assert network(torch.rand(1, 1, *size)).shape == (1, 3, *size)


@torch.no_grad()
def test_padding_is_the_floor_of_the_window_at_the_end():
    network = swin_unetr(input_map={**WINDOW, "scale": [0.1], "shift": [0.3]})
    image = torch.rand(1, 1, 12, 16, 14)
    floor = torch.full((1, 1, 16, 16, 16), -3.0)  # 0.1 * -3 + 0.3 = 0
    floor[:, :, :12, :16, :14] = image
    torch.testing.assert_close(network(image), network(floor)[:, :, :12, :16, :14])


@torch.no_grad()
def test_encoder_sees_the_window_and_the_stem_what_lies_outside():
    network = swin_unetr(input_map=WINDOW)
    image = torch.rand(1, 1, 16, 16, 16) * 4 - 2
    expected = network.encoder.features(image.clamp(0, 1))

    seen = []
    network.stem.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    network.bottom.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    network(image)
    assert torch.equal(seen[0], image) and torch.equal(seen[1], expected[-1])


@torch.no_grad()
def test_turned_axes_come_back():
    turned = swin_unetr(input_map={**IDENTITY, "flip_axes": [0, 2]})
    plain = swin_unetr()
    image = torch.rand(1, 1, 16, 8, 16)
    turned.load_state_dict(plain.state_dict(), strict=True)
    torch.testing.assert_close(turned(image), plain(image.flip(2, 4)).flip(2, 4))


def test_every_parameter_gets_a_gradient():
    network = swin_unetr().train()
    network(torch.rand(1, 1, 16, 32, 16)).square().sum().backward()
    assert all(
        p.grad is not None and p.grad.abs().sum() > 0
        for p in network.parameters()
        if p.requires_grad
    )
