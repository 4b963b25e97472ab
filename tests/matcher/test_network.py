import math

import pytest
import torch
import torch.nn.functional as F

from alice_nnunet.matcher.network import SamNet
from alice_nnunet.matcher.presets import COARSE_STRIDE, FINE_STRIDE, PRESETS

NARROW = {"widths": (4, 6, 8, 10), "channels": 5, "stem": (3, 5, 5)}


def network(seed: int = 0) -> SamNet:
    torch.manual_seed(seed)
    return SamNet(**NARROW)


def convolved(x, state: dict, name: str, stride, kernel) -> torch.Tensor:
    """Convolution and batch norm with the statistics of the batch."""
    x = F.conv3d(x, state[f"{name}.conv.weight"], stride=stride, padding=[k // 2 for k in kernel])
    mean, var = (
        x.mean((0, 2, 3, 4), keepdim=True),
        x.var((0, 2, 3, 4), keepdim=True, unbiased=False),
    )
    along = (slice(None), *3 * (None,))
    return (x - mean) / (var + 1e-5).sqrt() * state[f"{name}.bn.weight"][along] + state[
        f"{name}.bn.bias"
    ][along]


def written_out(state: dict, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """SAM's network line by line (its Fig. 2 and its configuration), on a state dict."""
    x, maps = F.relu(convolved(x, state, "stem", (1, 1, 1), (3, 5, 5))), []
    for n, (kernel, stride) in enumerate(
        [
            ((1, 3, 3), (1, 2, 2)),
            ((1, 3, 3), (1, 2, 2)),
            ((3, 3, 3), (1, 2, 2)),
            ((3, 3, 3), (2, 2, 2)),
        ]
    ):
        inner = F.relu(convolved(x, state, f"stages.{n}.0.conv1", stride, kernel))
        x = F.relu(
            convolved(inner, state, f"stages.{n}.0.conv2", (1, 1, 1), kernel)
            + convolved(x, state, f"stages.{n}.0.downsample", stride, (1, 1, 1))
        )
        inner = F.relu(convolved(x, state, f"stages.{n}.1.conv1", (1, 1, 1), kernel))
        x = F.relu(convolved(inner, state, f"stages.{n}.1.conv2", (1, 1, 1), kernel) + x)
        if n == 0:
            x = torch.maximum(x[:, :, ::2], x[:, :, 1::2])
        maps.append(x)
    lateral = [
        F.conv3d(m, state[f"fine.lateral.{n}.weight"], state[f"fine.lateral.{n}.bias"])
        for n, m in enumerate(maps[:3])
    ]

    def twice(m):
        return m.repeat_interleave(2, 3).repeat_interleave(2, 4)

    summed = lateral[0] + twice(lateral[1] + twice(lateral[2]))
    coarse = F.conv3d(maps[3], state["coarse.lateral.0.weight"], state["coarse.lateral.0.bias"])
    heads = [
        F.conv3d(m, state[f"{name}.out.weight"], state[f"{name}.out.bias"], padding=1)
        for name, m in (("fine", summed), ("coarse", coarse))
    ]
    return tuple(h / (h**2).sum(1, keepdim=True).sqrt() for h in heads)


def test_it_computes_what_is_written_out():
    net, image = network(), torch.rand(2, 1, 8, 32, 48)
    for found, expected in zip(net(image), written_out(net.state_dict(), image)):
        assert torch.allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("size", [(8, 32, 48), (5, 17, 33), (1, 1, 1), (7, 30, 16)])
def test_strides_divide_the_size_and_round_up(size):
    with torch.no_grad():
        fine, coarse = network().eval()(torch.rand(2, 1, *size))
    assert (FINE_STRIDE, COARSE_STRIDE) == ((2, 2, 2), (4, 16, 16))
    assert fine.shape == (2, 5, *(math.ceil(n / 2) for n in size))
    assert coarse.shape == (
        2,
        5,
        math.ceil(size[0] / 4),
        math.ceil(size[1] / 16),
        math.ceil(size[2] / 16),
    )
    for maps in (fine, coarse):
        assert torch.allclose(maps.norm(dim=1), torch.ones(()), atol=1e-5)


def test_every_parameter_learns():
    net, image = network(), torch.rand(2, 1, 8, 32, 32)
    sum((m * torch.randn_like(m)).sum() for m in net(image)).backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


@torch.no_grad()
def test_slices_do_not_mix_before_the_third_stage():
    net = network().eval()
    for number, (stage, channels) in enumerate(zip(net.stages, (4, 4, 6, 8))):
        one = torch.rand(1, channels, 6, 16, 16)
        other = one.clone()
        other[:, :, 2] += 1
        differs = (stage(one) != stage(other)).any(4).any(3).any(1)[0]
        assert (
            differs.sum() > 1
            if number > 1
            else differs.tolist() == [False, False, True, False, False, False]
        )


def test_the_paper_preset_is_sam():
    net = SamNet(**PRESETS["paper"].network)
    assert net.stem.conv.weight.shape == (64, 1, 3, 7, 7)
    assert [stage[1].conv2.conv.out_channels for stage in net.stages] == [64, 128, 256, 512]
    blocks = sum(
        a * b * volume
        + 3 * b * b * volume
        + a * b
        + 5 * 2 * b  # four convolutions, the shortcut, five norms
        for a, b, volume in [(64, 64, 9), (64, 128, 9), (128, 256, 27), (256, 512, 27)]
    )
    heads = (64 + 128 + 256 + 512) * 128 + 4 * 128 + 2 * (128 * 128 * 27 + 128)
    assert sum(p.numel() for p in net.parameters()) == 64 * 3 * 7 * 7 + 2 * 64 + blocks + heads


@torch.no_grad()
@pytest.mark.parametrize("preset, channels", [("tiny", 16), ("small", 32), ("paper", 128)])
def test_presets_have_vectors_of_their_width(preset, channels):
    fine, coarse = SamNet(**PRESETS[preset].network).eval()(torch.rand(1, 1, 4, 16, 16))
    assert fine.shape == (1, channels, 2, 8, 8) and coarse.shape == (1, channels, 1, 1, 1)
