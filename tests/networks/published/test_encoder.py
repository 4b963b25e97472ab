"""Exported tensors in MONAI's own classes, loaded by the code that the model card shows.

The classes compute what our encoders compute.
"""

import pytest
import torch
from safetensors.torch import save_file

from alice_nnunet.model.encoders.registry import build_encoder
from alice_nnunet.networks.published.encoder import published_encoder
from alice_nnunet.networks.published.nnformer import from_published
from alice_nnunet.sharing.exported import save_tensors
from tests.networks.test_nnformer import published_names

VIT = {"in_channels": 1, "crop_size": [32, 48, 64], "width": 48, "depth": 12, "heads": 3}
SWIN = {
    "in_channels": 1,
    "crop_size": [32, 32, 32],
    "embed_width": 12,
    "depths": [2] * 4,
    "heads": [3, 6, 12, 24],
    "windows": [[2, 2, 2]] * 4,
}
NNFORMER = {
    "in_channels": 1,
    "crop_size": [32, 64, 64],
    "embed_width": 48,
    "depths": [2] * 4,
    "heads": [3, 6, 12, 24],
    "windows": [[4] * 3, [4] * 3, [8] * 3, [4] * 3],
}


def encoder_of(name: str, arguments: dict) -> torch.nn.Module:
    torch.manual_seed(0)
    encoder = build_encoder(name, arguments).eval()
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return encoder


def run_the_cards_code(name: str, arguments: dict, folder, monkeypatch) -> tuple:
    """Our encoder, and the network that the code on the model card leaves behind."""
    encoder = encoder_of(name, arguments)
    published, _ = published_encoder(name, arguments, encoder.state_dict())
    save_tensors(folder / published.file, published.weights)
    monkeypatch.chdir(folder)
    names = {}
    exec(published.code, names)
    return encoder, names["network"].eval(), published


@torch.no_grad()
@pytest.mark.parametrize("depth, whole", [(12, True), (4, False)])
def test_vit_in_monais_unetr_or_vit(tmp_path, monkeypatch, depth, whole):
    encoder, network, published = run_the_cards_code(
        "vit", {**VIT, "depth": depth}, tmp_path, monkeypatch
    )
    vit = network.vit if whole else network
    vit.load_state_dict(
        {n.removeprefix("vit."): t for n, t in published.weights.items()}, strict=True
    )
    image = torch.rand(1, 1, 32, 48, 64)
    torch.testing.assert_close(encoder(image), vit(image)[0], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_vit_of_smaller_tokens_in_monais_vit(tmp_path, monkeypatch):
    encoder, vit, published = run_the_cards_code(
        "vit", {**VIT, "token": [8, 16, 8]}, tmp_path, monkeypatch
    )
    assert "Tokens are (8, 16, 8) voxels" in published.remark
    image = torch.rand(1, 1, 32, 48, 64)
    torch.testing.assert_close(encoder(image), vit(image)[0], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_swin_in_monais_swin_unetr(tmp_path, monkeypatch):
    """Windows of 2 on grids of 32 to 4 tokens are neither padded nor shrunk.

    So MONAI's numbers are right.
    """
    encoder, network, published = run_the_cards_code("swin", SWIN, tmp_path, monkeypatch)
    network.swinViT.load_state_dict(
        {n.removeprefix("swinViT."): t for n, t in published.weights.items()}, strict=True
    )
    image = torch.rand(1, 1, 64, 64, 64)
    for ours, theirs in zip(encoder.features(image), network.swinViT(image), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bug_compatible", [False, True])
def test_nnformer_has_the_authors_names_and_an_index_that_reads_biases_as_they_were_trained(
    bug_compatible,
):
    arguments = {**NNFORMER, "bug_compatible": bug_compatible}
    weights = encoder_of("nnformer", arguments).state_dict()
    published, _ = published_encoder("nnformer", arguments, weights)

    of_the_encoder = {name for name in published_names() if name.startswith("model_down.")}
    for stage in range(3):  # these norms are the decoder's
        of_the_encoder -= {f"model_down.norm{stage}.weight", f"model_down.norm{stage}.bias"}
    assert set(published.weights) == of_the_encoder

    again = from_published(published.weights, (2, 2, 2, 2))
    assert again.keys() == {f"encoder.{name}" for name in weights}
    assert all(torch.equal(again[f"encoder.{name}"], weights[name]) for name in weights)

    # Liu et al. 2021
    index = published.weights["model_down.layers.2.blocks.0.attn.relative_position_index"]
    places = torch.cartesian_prod(*3 * [torch.arange(8)])
    right = ((places[:, None] - places[None] + 7) * torch.tensor([225, 15, 1])).sum(-1)
    assert torch.equal(index, right) is not bug_compatible
    assert len(index.unique()) == (547 if bug_compatible else 15**3)


@pytest.mark.parametrize(
    "change",
    [
        {"depths": [2] * 3, "heads": [3, 6, 12], "windows": [[2] * 3] * 3},
        {"embed_width": 16, "heads": [1, 2, 4, 8]},
        {"windows": [[2] * 3] * 3 + [[4] * 3]},
    ],
)
def test_swin_that_monai_cannot_build_has_no_file(change):
    arguments = {**SWIN, **change}
    published, reason = published_encoder(
        "swin", arguments, build_encoder("swin", arguments).state_dict()
    )
    assert published is None and "MONAI's SwinUNETR has four stages" in reason


def test_tensors_that_share_memory_are_saved(tmp_path):
    shared = torch.rand(3)
    save_tensors(tmp_path / "a.safetensors", {"a": shared, "b": shared, "c": shared.expand(2, 3).T})
    with pytest.raises(RuntimeError, match="memory"):
        save_file({"a": shared, "b": shared}, tmp_path / "b.safetensors")
