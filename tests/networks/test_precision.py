"""bf16 on CPUs: what it changes, and what it must leave alone."""

import pytest
import torch
from torch import nn

from alice_nnunet.model.presets import PRESETS
from alice_nnunet.networks.nnformer import NnFormerNet
from alice_nnunet.networks.precision import SegmentationNetwork
from alice_nnunet.networks.swin_unetr import SwinUNETR
from alice_nnunet.networks.unetr import UNETR

NETWORKS = {"vit": UNETR, "swin": SwinUNETR, "nnformer": NnFormerNet}
WINDOW = {"scale": [1.0], "shift": [0.0], "low": [0.0], "high": [1.0], "flip_axes": []}
SIZE = (32, 32, 32)


def network(encoder: str) -> SegmentationNetwork:
    """The tiny network around an encoder, with random weights."""
    preset = PRESETS[encoder]["tiny"]
    arguments = {**preset.encoder, "in_channels": 1, "crop_size": SIZE}
    torch.manual_seed(0)
    return NETWORKS[encoder](1, 3, arguments, WINDOW, **preset.network)


@pytest.mark.parametrize("encoder", NETWORKS)
def test_logits_are_fp32_and_near_those_of_fp32(encoder):
    ours = network(encoder).eval()
    image = torch.rand(1, 1, *SIZE)
    with torch.no_grad():
        exact = ours(image)
        ours.half_on_cpu = True
        rounded = ours(image)

    assert rounded.dtype == torch.float32
    assert not torch.equal(rounded, exact)
    difference = (rounded - exact).abs().mean() / exact.std()
    assert difference < 0.02
    agreeing = (rounded.argmax(1) == exact.argmax(1)).float().mean()
    assert agreeing > 0.98


@pytest.mark.parametrize("encoder", NETWORKS)
def test_layers_compute_in_bf16_and_gradients_are_near_those_of_fp32(encoder):
    ours = network(encoder)
    image = torch.rand(2, 1, *SIZE)
    dtypes = set()
    layers = [m for m in ours.modules() if isinstance(m, (nn.Conv3d, nn.Linear))]
    for layer in layers:
        layer.register_forward_hook(lambda _, __, result: dtypes.add(result.dtype))

    gradients = {}
    for half in (False, True):
        leave_in_memory(3e33)
        dtypes.clear()
        ours.half_on_cpu = half
        ours.zero_grad()
        ours(image).square().mean().backward()
        assert (torch.bfloat16 in dtypes) == half
        gradients[half] = torch.cat(
            [p.grad.flatten() for p in ours.parameters() if p.grad is not None]
        )

    assert gradients[True].dtype == torch.float32
    assert torch.cosine_similarity(gradients[False], gradients[True], dim=0) > 0.99


def test_every_output_of_deep_supervision_is_fp32():
    ours = network("nnformer")
    ours.deep_supervision = ours.half_on_cpu = True
    outputs = ours(torch.rand(1, 1, *SIZE))
    assert len(outputs) == 2 and all(output.dtype == torch.float32 for output in outputs)


def test_other_devices_are_left_to_nnunet():
    ours = network("vit").to("meta")
    ours.half_on_cpu = True
    with torch.autocast("cpu", torch.bfloat16, enabled=False):
        assert ours(torch.empty(1, 1, *SIZE, device="meta")).dtype == torch.float32


def leave_in_memory(value: float) -> None:
    """Fill memory with a value and free it: what is not written later holds this value."""
    for numbers in (2_000, 10_000, 50_000, 200_000, 500_000):
        torch.full((numbers,), value)
