"""Swin and nnFormer on visible units against the dense networks of dense_windows.py."""

import nibabel
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from alice_nnunet.model.encoders import window_attention
from alice_nnunet.model.encoders.nnformer import NnFormer
from alice_nnunet.model.encoders.registry import build_encoder
from alice_nnunet.model.encoders.swin import Swin
from alice_nnunet.model.losses import moments, spread
from alice_nnunet.model.presets import PRESETS
from alice_nnunet.model.tokens import masked_from, random_keep, take_tokens, unpatchify
from tests.model.encoders.dense_windows import dense_nnformer, dense_swin

DENSE = {Swin: dense_swin, NnFormer: dense_nnformer}
BOTH = pytest.mark.parametrize("cls", [Swin, NnFormer])


def build(cls, units, windows=((3, 4, 5), (3, 2, 4)), in_channels: int = 1, **arguments):
    """A small encoder in double precision with random weights, and the size of a crop of units."""
    torch.manual_seed(0)
    stages = len(windows)
    token = (2, 2, 2) if cls is Swin else (2, 4, 4)
    mergings = stages if cls is Swin else stages - 1
    crop = tuple(t * 2**mergings * n for t, n in zip(token, units))

    encoder = cls(
        in_channels, crop, 4, (2,) * stages, (2, 1, 2)[:stages], windows, **arguments
    ).double()
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return encoder, crop


def noise_in(masked, encoder, channels: int = 1):
    """Random voxels where units are hidden, 0 elsewhere."""
    voxels = channels * encoder.unit[0] * encoder.unit[1] * encoder.unit[2]
    inside = unpatchify(
        masked[..., None].double().expand(-1, -1, voxels), encoder.grid, encoder.unit
    )
    return inside * torch.randn_like(inside) * 100


def check(cls, units, windows, ratio, seed: int = 0):
    """Values and gradients equal those of the dense network at visible units.

    What is hidden changes nothing.
    """
    encoder, size = build(cls, units, windows)
    count = units[0] * units[1] * units[2]
    keep = random_keep(2, count, ratio, torch.Generator().manual_seed(seed))
    masked = masked_from(keep, count)
    crop = torch.randn(2, 1, *size, dtype=torch.double, requires_grad=True)

    sparse = encoder(crop, keep)
    dense = take_tokens(DENSE[cls](encoder, crop, masked), keep)
    torch.testing.assert_close(sparse, dense, rtol=1e-8, atol=1e-8)

    weight = torch.randn_like(sparse)
    inputs = [crop, *encoder.parameters()]
    gradients = torch.autograd.grad((sparse * weight).sum(), inputs)
    dense_gradients = torch.autograd.grad((dense * weight).sum(), inputs)
    for ours, expected in zip(gradients, dense_gradients):
        torch.testing.assert_close(ours, expected, rtol=1e-7, atol=1e-7)

    with torch.no_grad():
        assert torch.equal(encoder(crop, keep), encoder(crop + noise_in(masked, encoder), keep))


@BOTH
@pytest.mark.parametrize("ratio", [0, 0.25, 0.75, 0.95])
@pytest.mark.parametrize(
    "windows", [((3, 3, 3), (3, 3, 3)), ((4, 4, 4), (2, 2, 2)), ((7, 5, 9), (8, 8, 8))], ids=str
)
def test_visible_only_equals_dense_attention_restricted_to_visible_tokens(cls, windows, ratio):
    # 6, 4 or 2 of 6 units are visible, or 2 of 30.
    check(cls, (1, 2, 3) if ratio < 0.9 else (2, 3, 5), windows, ratio)


@BOTH
@pytest.mark.parametrize("groups", [1, 3])
def test_a_cpu_attends_to_a_few_groups_at_a_time(cls, groups, monkeypatch):
    """For windows that share their biases (intact crops) and for windows that do not."""
    monkeypatch.setattr(window_attention, "CPU_SCORES", groups * 2 * 32**2)  # two heads, 32 slots
    check(cls, (2, 2, 3), ((3, 4, 5), (2, 3, 2)), 0.25)

    encoder, size = build(cls, (2, 2, 3))
    crop = torch.randn(2, 1, *size, dtype=torch.double)
    dense = DENSE[cls](encoder, crop, torch.zeros(2, 12, dtype=torch.bool))
    torch.testing.assert_close(encoder(crop), dense, rtol=1e-8, atol=1e-8)


@BOTH
@settings(max_examples=10, deadline=None, derandomize=True)
@given(
    units=st.tuples(*[st.integers(1, 3)] * 3),
    windows=st.lists(st.tuples(*[st.integers(1, 6)] * 3), min_size=1, max_size=2).map(tuple),
    ratio=st.floats(0, 0.95),
    seed=st.integers(0, 99),
)
def test_random_geometries(cls, units, windows, ratio, seed):
    check(cls, units, windows, ratio, seed)


@BOTH
def test_all_units_visible_is_the_dense_encoder(cls):
    encoder, size = build(cls, (2, 3, 2))
    crop = torch.randn(2, 1, *size, dtype=torch.double)
    everything = torch.arange(12).expand(2, -1)
    dense = DENSE[cls](encoder, crop, torch.zeros(2, 12, dtype=torch.bool))
    torch.testing.assert_close(encoder(crop), encoder(crop, everything), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(encoder(crop), dense, rtol=1e-8, atol=1e-8)


@BOTH
def test_hidden_voxels_leave_visible_outputs_as_they_are_to_the_bit(cls):
    encoder, size = build(cls, (2, 3, 2), in_channels=2)
    encoder.float()
    keep = random_keep(2, 12, 0.75, torch.Generator().manual_seed(1))
    masked = masked_from(keep, 12)
    crop = torch.randn(2, 2, *size)
    expected = encoder(crop, keep)

    hidden = noise_in(masked, encoder, 2).float()
    assert hidden.abs().max() > 100 and torch.equal(expected, encoder(crop + hidden, keep))
    visible = noise_in(~masked, encoder, 2).float()
    assert not torch.allclose(expected, encoder(crop + visible, keep))


@BOTH
def test_the_order_of_keep_does_not_matter(cls):
    encoder, size = build(cls, (2, 3, 2))
    crop = torch.randn(1, 1, *size, dtype=torch.double)
    keep = torch.tensor([[3, 10, 11, 7]])
    order = [2, 0, 3, 1]
    torch.testing.assert_close(
        encoder(crop, keep)[:, order], encoder(crop, keep[:, order]), rtol=1e-8, atol=1e-8
    )


@BOTH
def test_any_other_crop_of_whole_units(cls):
    encoder, _ = build(cls, (2, 3, 2))
    z, y, x = encoder.unit
    assert encoder(torch.rand(1, 1, 4 * z, y, 3 * x).double()).shape == (1, 12, encoder.width)
    with pytest.raises(ValueError, match="multiple of"):
        encoder(torch.rand(1, 1, 4 * z, y + 2, 3 * x).double())


def test_features_of_swin_are_normalised_volumes_at_every_scale():
    encoder, size = build(Swin, (2, 3, 2))
    crop = torch.rand(1, 1, *size).double()
    features = encoder.features(crop)
    assert [tuple(f.shape[1:]) for f in features] == [(4, 8, 12, 8), (8, 4, 6, 4), (16, 2, 3, 2)]
    for feature in features:
        torch.testing.assert_close(
            feature.mean(1), torch.zeros_like(feature[:, 0]), rtol=0, atol=1e-8
        )
    torch.testing.assert_close(features[-1].flatten(2).transpose(1, 2), encoder(crop))


def test_features_of_nnformer_are_the_outputs_of_the_stages():
    encoder, size = build(NnFormer, (2, 3, 2))
    crop = torch.rand(1, 1, *size).double()
    outputs = []
    for stage in encoder.stages:
        stage.register_forward_hook(lambda module, inputs, output: outputs.append(output))

    first, last = encoder.features(crop)
    assert first.shape == (1, 4, 4, 6, 4) and last.shape == (1, 8, 2, 3, 2)
    assert torch.equal(first[0, :, 1, 2, 3], outputs[0][0, 0, 1, 2, 3])
    assert torch.equal(last.flatten(2).transpose(1, 2), encoder(crop))


@BOTH
def test_wrong_settings_are_refused(cls):
    for arguments, text in (
        ((4, (2, 2), (1, 1), ((3, 3, 3),)), "one value for each stage"),
        ((5, (2,), (2,), ((3, 3, 3),)), "multiple|even"),
    ):
        with pytest.raises(ValueError, match=text):
            cls(1, (32, 32, 32), *arguments)

    encoder, size = build(cls, (1, 1, 2), bug_compatible=True)
    with pytest.raises(ValueError, match="intact crops only"):
        encoder(torch.rand(1, 1, *size).double(), torch.tensor([[0]]))


@pytest.mark.parametrize(
    "name, unit, units, width, parameters",
    [
        ("swin", (32, 32, 32), (2, 6, 6), 768, 8_062_002),
        ("nnformer", (16, 32, 32), (4, 6, 6), 1536, 119_043_084),
    ],
)
def test_the_paper_presets(name, unit, units, width, parameters):
    with torch.device("meta"):
        encoder = build_encoder(
            name, {"in_channels": 1, "crop_size": (64, 192, 192), **PRESETS[name]["paper"].encoder}
        )
    assert (encoder.unit, encoder.grid, encoder.width) == (unit, units, width)
    assert sum(p.numel() for p in encoder.parameters()) == parameters


@pytest.mark.parametrize("name", ["swin", "nnformer"])
def test_the_tiny_presets_leave_a_choice_of_what_to_hide(name):
    encoder = build_encoder(
        name, {"in_channels": 1, "crop_size": (32, 64, 64), **PRESETS[name]["tiny"].encoder}
    )
    assert encoder.grid[0] * encoder.grid[1] * encoder.grid[2] >= 32


@pytest.fixture(scope="module")
def real_crops(shipped_ct):
    """(6, 1, 32, 64, 64): crops of one person's CT at 3 mm, as the pretraining shows them."""
    hu = np.asarray(nibabel.load(shipped_ct["lidc0001"]).dataobj, np.float32).T  # (111, 92, 120)
    window = torch.from_numpy(hu).add(125).div(380).clamp(0, 1)

    crops = []
    for z in (0, 79):
        for y, x in ((0, 0), (14, 28), (28, 56)):
            crops.append(window[None, z : z + 32, y : y + 64, x : x + 64])
    return torch.stack(crops)


@pytest.mark.parametrize("name", ["swin", "nnformer"])
@pytest.mark.parametrize("seed", range(3))
def test_new_encoders_tell_places_of_a_body_apart(name, seed, real_crops):
    """Before the first step.

    A swin whose first bias is drawn at random begins with 0.24 to 0.55 (six seeds), and one of them
    nearly collapsed.
    """
    torch.manual_seed(seed)
    encoder = build_encoder(
        name, {"in_channels": 1, "crop_size": (32, 64, 64), **PRESETS[name]["tiny"].encoder}
    )
    with torch.no_grad():
        tokens = encoder(real_crops)
    assert spread(moments(tokens), tokens.shape[:-1].numel()) > 0.55
