import pytest
import torch

from alice_nnunet.errors import UserError
from alice_nnunet.model.encoders.registry import build_encoder
from alice_nnunet.model.encoders.vit import ViT
from alice_nnunet.model.presets import PRESETS
from alice_nnunet.model.tokens import masked_from, random_keep, take_tokens, unpatchify
from alice_nnunet.model.transformer import Attention

CROP = (32, 48, 64)
N = 2 * 3 * 4


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return ViT(2, CROP, width=48, depth=4, heads=4).eval()


def test_attention_equals_explicit_softmax():
    torch.manual_seed(0)
    attention = Attention(12, 3)
    x = torch.rand(2, 5, 12)
    query, key, value = (part.reshape(2, 5, 3, 4) for part in attention.qkv(x).split(12, -1))

    expected = torch.zeros(2, 5, 3, 4)
    for b in range(2):
        for h in range(3):
            weights = (query[b, :, h] @ key[b, :, h].T / 2).softmax(-1)
            expected[b, :, h] = weights @ value[b, :, h]
    assert torch.allclose(attention(x), attention.out(expected.flatten(2)), atol=1e-6)


def test_embedding_is_the_strided_convolution(encoder):
    crop = torch.rand(2, 2, *CROP)
    expected = encoder.patch_embed(crop).flatten(2).transpose(1, 2) + encoder.positions
    assert torch.allclose(encoder.embed(crop, None), expected, atol=1e-5)


@pytest.mark.parametrize("token", [(8, 8, 8), (8, 16, 16), (16, 8, 16)])
def test_smaller_tokens_are_the_strided_convolution(token):
    encoder = ViT(2, CROP, width=48, depth=2, heads=4, token=token)
    crop = torch.rand(2, 2, *CROP)
    convolved = torch.nn.functional.conv3d(
        crop, encoder.patch_embed.weight, encoder.patch_embed.bias, stride=token
    )
    assert encoder.unit == token and encoder.grid == convolved.shape[2:]
    expected = convolved.flatten(2).transpose(1, 2) + encoder.positions
    assert torch.allclose(encoder.embed(crop, None), expected, atol=1e-5)


def test_tokens_of_other_sizes_are_refused():
    with pytest.raises(ValueError, match=r"8 or 16 voxels .* got \(4, 16, 16\)"):
        ViT(1, CROP, width=48, depth=2, heads=4, token=(4, 16, 16))


@pytest.mark.parametrize("ratio", [0.25, 0.75, 0.95])
def test_visible_only_equals_dense_attention_restricted_to_visible_tokens(encoder, ratio):
    crop = torch.rand(2, 2, *CROP)
    keep = random_keep(2, N, ratio, torch.Generator().manual_seed(1))
    hidden = masked_from(keep, N)[:, None, None]

    # The dense network, with hidden tokens taken out of every softmax
    x = encoder.embed(crop, None)
    b, n, e = x.shape
    for block in encoder.blocks:
        qkv = block.attention.qkv(block.norm1(x)).reshape(b, n, 3, 4, e // 4)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        scores = query @ key.transpose(-1, -2) / (e // 4) ** 0.5
        mixed = scores.masked_fill(hidden, -torch.inf).softmax(-1) @ value
        x = x + block.attention.out(mixed.transpose(1, 2).reshape(b, n, e))
        x = x + block.mlp(block.norm2(x))

    assert torch.allclose(encoder(crop, keep), take_tokens(encoder.norm(x), keep), atol=1e-5)


def test_nothing_hidden_reaches_a_visible_output(encoder):
    crop = torch.rand(2, 2, *CROP)
    keep = random_keep(2, N, 0.75, torch.Generator().manual_seed(2))
    hidden = masked_from(keep, N)[..., None].expand(-1, -1, 2 * 16**3).float()
    noise = unpatchify(hidden, (2, 3, 4), (16, 16, 16)) * torch.randn(2, 2, *CROP) * 100
    assert noise.abs().max() > 100
    assert torch.equal(encoder(crop, keep), encoder(crop + noise, keep))
    visible_changed = crop + unpatchify(1 - hidden, (2, 3, 4), (16, 16, 16))
    assert not torch.allclose(encoder(crop, keep), encoder(visible_changed, keep))


def test_the_order_of_keep_does_not_matter(encoder):
    crop = torch.rand(1, 2, *CROP)
    keep = torch.tensor([[3, 20, 11, 7]])
    order = torch.tensor([2, 0, 3, 1])
    assert torch.allclose(encoder(crop, keep)[:, order], encoder(crop, keep[:, order]), atol=1e-5)


def test_features_are_the_outputs_of_the_blocks(encoder):
    crop = torch.rand(1, 2, *CROP)
    outputs = []
    for block in encoder.blocks:
        block.register_forward_hook(lambda module, inputs, output: outputs.append(output))

    features = encoder.features(crop)
    for feature, tokens in zip(features, [*outputs[1:], encoder.norm(outputs[-1])]):
        assert feature.shape == (1, 48, 2, 3, 4)
        assert torch.equal(feature[0, :, 1, 2, 3], tokens[0, -1])
        assert torch.equal(feature[0, :, 0, 1, 0], tokens[0, 4])


def test_another_crop_interpolates_the_positions(encoder):
    assert encoder(torch.rand(1, 2, 64, 16, 32)).shape == (1, 4 * 1 * 2, 48)


def test_wrong_sizes_are_refused(encoder):
    with pytest.raises(ValueError, match="multiple of"):
        encoder(torch.rand(1, 2, 30, 48, 64))
    with pytest.raises(ValueError, match="multiple of heads"):
        ViT(1, CROP, width=50, depth=1, heads=4)
    with pytest.raises(UserError, match="known: vit, swin, nnformer"):
        build_encoder("resnet", {})


def test_the_paper_preset_is_vit_base():
    settings = PRESETS["vit"]["paper"].encoder
    with torch.device("meta"):
        encoder = build_encoder("vit", {"in_channels": 1, "crop_size": (64, 192, 192), **settings})
    assert len(encoder.blocks) == 12 and encoder.width == 768
    assert encoder.positions.shape == (1, 576, 768)
    assert sum(p.numel() for p in encoder.parameters()) == 88_617_216
