"""nnFormer: decoder against slow attention, outputs at several scales, its authors' names."""

import pytest
import torch

from alice_nnunet.errors import UserError
from alice_nnunet.model.encoders.bias_table import BiasTable
from alice_nnunet.model.encoders.stage import CrossStage
from alice_nnunet.networks.nnformer import NnFormerNet
from alice_nnunet.networks.published.nnformer import from_published, to_published
from tests.model.encoders.dense_windows import dense_attention, dense_block

IDENTITY = {"scale": [1.0], "shift": [0.0], "low": [None], "high": [None], "flip_axes": []}
WINDOW = {**IDENTITY, "low": [0.0], "high": [1.0]}
PAPER = {
    "depths": [2, 2, 2, 2],
    "heads": [6, 12, 24, 48],
    "windows": [[4] * 3, [4] * 3, [8] * 3, [4] * 3],
    "embed_width": 192,
}


def nnformer(input_map=IDENTITY, deep_supervision: bool = False, **changes) -> NnFormerNet:
    arguments = {
        "in_channels": 1,
        "crop_size": [16, 32, 32],
        "embed_width": 8,
        "depths": [2, 2, 2],
        "heads": [1, 2, 4],
        "windows": [[3, 3, 3], [2, 3, 2], [2, 2, 2]],
        **changes,
    }

    torch.manual_seed(0)
    network = NnFormerNet(1, 3, arguments, input_map).eval()
    network.deep_supervision = deep_supervision
    return network


def test_the_decoders_stage_is_attention_of_x_on_skip_then_a_shifted_block():
    torch.manual_seed(0)
    window = (3, 2, 4)
    grid = (5, 4, 6)
    stage = CrossStage(8, 2, 2, BiasTable(window)).double()
    x, skip = torch.randn(2, 2, 1, *grid, 8, dtype=torch.double)
    cross = stage.cross
    nothing = torch.zeros(2, *grid, dtype=torch.bool)

    qkv = torch.cat([cross.norm1(x), cross.attention.kv(cross.norm1(skip))], -1)[:, 0]
    mixed = dense_attention(cross.attention, qkv, nothing, window, False)
    expected = x[:, 0] + skip[:, 0] + mixed
    expected = expected + cross.mlp(cross.norm2(expected))
    expected = dense_block(stage.blocks[0], expected, nothing, window, True)
    torch.testing.assert_close(stage(x, skip)[:, 0], expected, rtol=1e-8, atol=1e-8)


@torch.no_grad()
def test_deep_supervision_changes_what_is_returned_and_nothing_else():
    plain = nnformer()
    deep = nnformer(deep_supervision=True)
    image = torch.rand(1, 1, 16, 32, 16)
    deep.load_state_dict(plain.state_dict(), strict=True)
    outputs = deep(image)
    assert [tuple(o.shape) for o in outputs] == [(1, 3, 16, 32, 16), (1, 3, 8, 16, 8)]
    assert torch.equal(outputs[0], plain(image))
    deep.deep_supervision = False
    assert torch.equal(deep(image), outputs[0])


@torch.no_grad()
@pytest.mark.parametrize("size", [(16, 32, 32), (21, 50, 33), (5, 7, 40)])
def test_any_patch_size_and_the_sizes_of_nnunets_labels(size):
    outputs = nnformer(deep_supervision=True)(torch.rand(1, 1, *size))
    assert [tuple(o.shape[2:]) for o in outputs] == [size, tuple(round(n * 0.5) for n in size)]


@torch.no_grad()
@pytest.mark.parametrize("size", [(96, 128, 128), (64, 128, 128), (50, 160, 77)])
def test_patches_of_the_paper_and_odd_ones(size):
    with torch.device("meta"):
        outputs = nnformer(deep_supervision=True, **PAPER)(torch.rand(1, 1, *size))
    assert [tuple(o.shape[2:]) for o in outputs] == [
        tuple(round(n * scale) for n in size) for scale in (1, 0.5, 0.25)
    ]


@torch.no_grad()
def test_padding_is_the_floor_of_the_window_at_the_end():
    network = nnformer({**WINDOW, "scale": [0.1], "shift": [0.3]})
    image = torch.rand(1, 1, 12, 32, 20)
    floor = torch.full((1, 1, 16, 32, 32), -3.0)  # 0.1 * -3 + 0.3 = 0
    floor[:, :, :12, :, :20] = image
    torch.testing.assert_close(network(image), network(floor)[:, :, :12, :, :20])


@torch.no_grad()
def test_turned_axes_come_back():
    turned = nnformer({**IDENTITY, "flip_axes": [0, 2]}, deep_supervision=True)
    plain = nnformer(deep_supervision=True)
    image = torch.rand(1, 1, 8, 16, 16)
    for ours, theirs in zip(turned(image), plain(image.flip(2, 4))):
        torch.testing.assert_close(ours, theirs.flip(2, 4))


def test_an_encoder_of_one_stage_is_refused():
    with pytest.raises(UserError, match="at least two stages"):
        nnformer(depths=[2], heads=[1], windows=[[3, 3, 3]])


def test_every_parameter_gets_a_gradient():
    network = nnformer(deep_supervision=True).train()
    sum(output.square().sum() for output in network(torch.rand(1, 1, 16, 32, 32))).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


def published_names(depths=(2, 2, 2, 2)) -> set[str]:
    """The names of the authors' network, from the list in its description."""
    linear = ("norm1", "norm2", "attn.proj", "mlp.fc1", "mlp.fc2")
    tables = ("attn.relative_position_bias_table", "attn.relative_position_index")
    embedding = ("proj1.conv1", "proj1.conv2", "proj1.norm1", "proj1.norm2")
    embedding += ("proj2.conv1", "proj2.conv2", "proj2.norm1", "norm")

    names = set()
    modules = [f"model_down.patch_embed.{part}" for part in embedding]  # with a weight and a bias
    for i, depth in enumerate(depths):
        modules.append(f"model_down.norm{i}")
        for j in range(depth):
            block = f"model_down.layers.{i}.blocks.{j}"
            modules += [f"{block}.{part}" for part in (*linear, "attn.qkv")]
            names |= {f"{block}.{table}" for table in tables}

    for i, depth in enumerate(depths[:-1]):
        modules += [f"model_down.layers.{i}.downsample.{part}" for part in ("reduction", "norm")]
        modules += [f"decoder.layers.{i}.Upsample.{part}" for part in ("norm", "up")]
        modules.append(f"final.{i}.up")
        for j in range(depth):
            block = f"decoder.layers.{i}.blocks.{j}"
            source = "attn.kv" if j == 0 else "attn.qkv"
            modules += [f"{block}.{part}" for part in (*linear, source)]
            names |= {f"{block}.{table}" for table in tables}

    for module in modules:
        names |= {f"{module}.weight", f"{module}.bias"}
    return names


def test_names_are_the_authors_and_convert_there_and_back():
    with torch.device("meta"):
        weights = nnformer(**PAPER, bug_compatible=True).state_dict()
    published = to_published(weights, PAPER["depths"], PAPER["windows"])
    assert set(published) == published_names()

    # The coarsest of the decoder's stages comes first there. It has the windows and widths of the
    # encoder's third.
    assert published["decoder.layers.0.blocks.0.attn.kv.weight"].shape == (1536, 768)
    table = published["decoder.layers.0.blocks.1.attn.relative_position_bias_table"]
    assert table.shape == (15**3, 24)
    assert published["decoder.layers.2.Upsample.up.weight"].shape == (384, 192, 2, 2, 2)
    assert published["final.0.up.weight"].shape == (192, 3, 2, 4, 4)
    index = published["model_down.layers.2.blocks.0.attn.relative_position_index"]
    assert index.shape == (512, 512) and len(index.unique()) == 547

    again = from_published(published, PAPER["depths"])
    assert set(again) == set(weights) and all(again[name] is weights[name] for name in weights)


@torch.no_grad()
def test_published_weights_are_read_as_they_were_trained():
    right = nnformer()
    published = nnformer(bug_compatible=True)
    for parameter in right.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.3)
    published.load_state_dict(right.state_dict(), strict=True)
    image = torch.rand(1, 1, 16, 32, 32)
    assert not torch.allclose(right(image), published(image), atol=1e-3)


def test_a_foreign_tensor_is_refused():
    foreign = {"vit.norm.bias": torch.zeros(1)}
    with pytest.raises(ValueError, match=r"vit\.norm\.bias is not a tensor of nnFormer"):
        from_published(foreign, (2, 2))
    with pytest.raises(ValueError, match=r"vit\.norm\.bias is not a tensor of nnFormer"):
        to_published(foreign, (2, 2), ((2, 2, 2), (2, 2, 2)))
