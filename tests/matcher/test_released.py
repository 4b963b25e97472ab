"""The oracle is the released network written out by its tensor names, on its own kind of volume."""

import math
from collections import OrderedDict

import pytest
import torch
import torch.nn.functional as F

from alice_nnunet.errors import UserError
from alice_nnunet.matcher.network import SamNet
from alice_nnunet.matcher.presets import PRESETS
from alice_nnunet.matcher.released import LISTED, PADDED_HU, WINDOW, from_released
from alice_nnunet.pretrain.datasets import pretrain_plans

WIDTHS, CHANNELS, DEPTHS = (
    (64, 128, 256, 512),
    128,
    (1, 1, 3, 3),
)  # DEPTHS: kernels along z of layer1 to layer4
STRIDES = ((1, 2, 2), (1, 2, 2), (1, 2, 2), (2, 2, 2))
BLOCKS = [f"backbone.layer{i + 1}.{j}" for i in range(4) for j in range(2)]


def released_shapes() -> dict[str, tuple[int, ...]]:
    convs = {"backbone.conv1": (64, 1, 3, 7, 7)}
    for layer, (inputs, outputs, depth) in enumerate(zip((64, *WIDTHS), WIDTHS, DEPTHS), 1):
        convs |= {
            f"backbone.layer{layer}.{j}.conv{k}": (
                outputs,
                inputs if (j, k) == (0, 1) else outputs,
                depth,
                3,
                3,
            )
            for j in (0, 1)
            for k in (1, 2)
        }
        convs[f"backbone.layer{layer}.0.downsample"] = (outputs, inputs, 1, 1, 1)
    shapes = {}
    for name, shape in convs.items():
        shapes[f"{name}.conv.weight"] = shape
        shapes |= {
            f"{name}.bn.{part}": shape[:1]
            for part in ("weight", "bias", "running_mean", "running_var")
        }
        shapes[f"{name}.bn.num_batches_tracked"] = ()
    laterals = {
        **{f"neck.lateral_convs.{i}": n for i, n in enumerate(WIDTHS[:3])},
        "read_out_head.lateral_convs.0": 512,
    }
    shapes |= {f"{name}.conv.weight": (CHANNELS, n, 1, 1, 1) for name, n in laterals.items()}
    shapes |= {
        f"{head}.fpn_convs.0.conv.weight": (CHANNELS, CHANNELS, 3, 3, 3)
        for head in ("neck", "read_out_head")
    }
    heads = [*laterals, "neck.fpn_convs.0", "read_out_head.fpn_convs.0"]
    return shapes | {f"{name}.conv.bias": (CHANNELS,) for name in heads}


def drawn(name: str, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """A random tensor with which the network neither explodes nor dies out."""
    if name.endswith("num_batches_tracked"):
        return torch.tensor(20000)
    if name.endswith("running_var") or name.endswith("bn.weight"):
        return torch.rand(shape, generator=generator) + 0.5
    scale = 0.02 if name == "backbone.conv1.conv.weight" else 1  # its input is some tens
    return torch.randn(shape, generator=generator) * scale * math.prod(shape[1:]) ** -0.5


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """State dict and file of a checkpoint with random weights; the file has UAE's head too."""
    generator, path = (
        torch.Generator().manual_seed(0),
        tmp_path_factory.mktemp("released") / "SAM.pth",
    )
    state = OrderedDict(
        (name, drawn(name, shape, generator)) for name, shape in released_shapes().items()
    )
    semantic = {
        "semantic_head.lateral_convs.0.conv.weight": torch.zeros(128, 64, 1, 1, 1),
        "semantic_head.fpn_convs.0.conv.bias": torch.zeros(128),
    }
    torch.save(
        {
            "meta": {"mmcv_version": "1.4.7", "config": "model = dict()", "iter": 20000},
            "state_dict": OrderedDict(state | semantic),
            "optimizer": {"state": {}, "param_groups": [{"lr": 0.02}]},
        },
        path,
    )
    yield state, path
    path.unlink()


@pytest.fixture(scope="module")
def weights(released) -> dict:
    return from_released(released[1])


@pytest.fixture(scope="module")
def network(weights) -> SamNet:
    with torch.device("meta"):
        network = SamNet(**PRESETS["paper"].network)
    network.load_state_dict(weights, strict=True, assign=True)
    return network.eval()


@pytest.fixture(scope="module")
def volume() -> torch.Tensor:
    """HU inside the window; with y and x of 16 n + 1, strides start alike from both ends."""
    return torch.empty(1, 1, 8, 17, 33).uniform_(
        *WINDOW, generator=torch.Generator().manual_seed(1)
    )


def ours(volume):
    return (volume - WINDOW[0]) / (WINDOW[1] - WINDOW[0])


def theirs(hu):
    return (hu + 1024) / 4095 * 255 - 50


def turned(maps):
    return maps.flip(3, 4)


def normed(state, name, x, stride=(1, 1, 1), padding=(0, 0, 0)):
    x, bn = F.conv3d(x, state[f"{name}.conv.weight"], None, stride, padding), f"{name}.bn"
    shift, scale = (
        state[f"{bn}.running_mean"],
        (state[f"{bn}.running_var"] + 1e-5).rsqrt() * state[f"{bn}.weight"],
    )
    along = (slice(None), *3 * (None,))
    return (x - shift[along]) * scale[along] + state[f"{bn}.bias"][along]


def released_stem(state, x, around):
    """The first convolution; around: the value beyond the border."""
    return F.relu(normed(state, "backbone.conv1", F.pad(x, (3, 3, 3, 3, 1, 1), value=around)))


def released_maps(state, x) -> list[torch.Tensor]:
    """The four layers on what the stem gave."""
    maps = []
    for layer, (stride, depth) in enumerate(zip(STRIDES, DEPTHS), 1):
        for block in (f"backbone.layer{layer}.0", f"backbone.layer{layer}.1"):
            first = block.endswith("0")
            padding, stride_here = (depth // 2, 1, 1), stride if first else (1, 1, 1)
            shortcut = normed(state, f"{block}.downsample", x, stride_here) if first else x
            x = F.relu(normed(state, f"{block}.conv1", x, stride_here, padding))
            x = F.relu(normed(state, f"{block}.conv2", x, (1, 1, 1), padding) + shortcut)
        if layer == 1:
            x = F.max_pool3d(x, (2, 1, 1))
        maps.append(x)
    return maps


def released_head(state, head, maps, upsampled):
    """The vectors of a feature pyramid; upsampled: a map on the grid of a finer one."""
    lateral = [
        F.conv3d(
            m,
            state[f"{head}.lateral_convs.{i}.conv.weight"],
            state[f"{head}.lateral_convs.{i}.conv.bias"],
        )
        for i, m in enumerate(maps)
    ]
    x = lateral.pop()
    while lateral:
        x = upsampled(x, lateral[-1].shape[2:]) + lateral.pop()
    return F.normalize(
        F.conv3d(
            x,
            state[f"{head}.fpn_convs.0.conv.weight"],
            state[f"{head}.fpn_convs.0.conv.bias"],
            padding=1,
        ),
        dim=1,
    )


def close(a, b) -> bool:
    return torch.allclose(a, b, atol=1e-4 * b.abs().max().item())


@torch.no_grad()
def test_the_stem_answers_for_our_volume_as_the_released_one_for_theirs(released, network, volume):
    expected = turned(released_stem(released[0], theirs(turned(volume)), 0.0))
    found = F.relu(network.stem(ours(volume)))
    inner = (slice(None), slice(None), slice(1, -1), slice(3, -3), slice(3, -3))
    assert close(found[inner], expected[inner])
    assert not close(found, expected)  # at the border the release sees PADDED_HU
    same_padding = turned(
        released_stem(released[0], theirs(turned(volume)), theirs(torch.tensor(WINDOW[0])).item())
    )
    assert close(found, same_padding)
    assert theirs(torch.tensor(PADDED_HU)).abs() < 1e-4


@torch.no_grad()
def test_the_whole_network_answers_as_the_released_one(released, network, volume):
    """With the border, the window's floor around the volume, and upsampling from the same end."""
    state, _ = released
    maps = released_maps(
        state, released_stem(state, theirs(turned(volume)), theirs(torch.tensor(WINDOW[0])).item())
    )
    x = F.relu(network.stem(ours(volume)))
    for number, expected in enumerate(maps):
        x = network.stages[number](x)
        x = F.max_pool3d(x, (2, 1, 1)) if number == 0 else x
        assert close(x, turned(expected)), f"layer {number + 1}"

    def from_our_end(m, size):
        return turned(F.interpolate(turned(m), size, mode="nearest"))

    fine, coarse = network(ours(volume))
    assert close(fine, turned(released_head(state, "neck", maps[:3], from_our_end)))
    assert close(coarse, turned(released_head(state, "read_out_head", maps[3:], from_our_end)))


@torch.no_grad()
def test_upsampling_by_two_counts_from_either_end(released, network):
    state, generator = released[0], torch.Generator().manual_seed(2)
    maps = [torch.randn(1, n, 2, s, 2 * s, generator=generator) for n, s in zip(WIDTHS, (8, 4, 2))]
    expected = turned(
        released_head(
            state,
            "neck",
            [turned(m) for m in maps],
            lambda m, size: F.interpolate(m, size, mode="nearest"),
        )
    )
    assert close(F.normalize(network.fine(maps), dim=1), expected)


def test_the_window_is_that_of_preprocessing():
    assert WINDOW == pretrain_plans.WINDOW


def saved(tmp_path, changes: dict, without: tuple[str, ...] = ()):
    """A checkpoint of zeros of the released shapes (one number each in the file), with changes."""
    state = {
        name: torch.zeros(()).expand(shape)
        for name, shape in released_shapes().items()
        if name not in without
    } | changes
    torch.save({"meta": {}, "state_dict": state}, tmp_path / "weights.pth")
    return tmp_path / "weights.pth"


def test_the_semantic_head_of_uae_is_left_out(weights):
    with torch.device("meta"):
        expected = SamNet(**PRESETS["paper"].network).state_dict()
    assert {name: value.shape for name, value in weights.items()} == {
        name: value.shape for name, value in expected.items()
    }


def test_every_tensor_that_does_not_fit_is_listed_at_once(tmp_path):
    path = saved(
        tmp_path,
        {
            "backbone.conv1.conv.weight": torch.zeros(64, 3, 7, 7),
            "neck.fpn_convs.1.conv.bias": torch.zeros(128),
            "backbone.layer1.0.conv1.bn.bias": "a text",
        },
        without=(
            "backbone.layer1.0.downsample.conv.weight",
            "read_out_head.lateral_convs.0.conv.bias",
        ),
    )
    with pytest.raises(UserError) as caught:
        from_released(path)
    for part in (
        str(path),
        "backbone.layer1.0.downsample.conv.weight is missing",
        "read_out_head.lateral_convs.0.conv.bias is missing",
        "neck.fpn_convs.1.conv.bias is unexpected",
        "backbone.conv1.conv.weight is (64, 3, 7, 7), not (64, 1, 3, 7, 7)",
        "backbone.layer1.0.conv1.bn.bias is str, not (64,)",
    ):
        assert part in str(caught.value)


def test_a_network_of_another_kind_fills_no_screen(tmp_path):
    with pytest.raises(UserError, match=r"more$") as caught:
        from_released(saved(tmp_path, {}, without=tuple(released_shapes())[LISTED + 5 :]))
    assert str(caught.value).count("is missing") == LISTED


@pytest.mark.parametrize("content", [[1, 2], {"meta": {}}, {"state_dict": [1]}], ids=str)
def test_a_file_without_state_dict_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(UserError, match="no state_dict"):
        from_released(tmp_path / "weights.pth")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"no checkpoint at .*nothing\.pth"):
        from_released(tmp_path / "nothing.pth")
