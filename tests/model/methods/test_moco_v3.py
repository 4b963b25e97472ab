import math

import pytest
import torch
from torch.nn.functional import cosine_similarity

from alice_nnunet.model.methods.moco_v3 import MoCoSettings
from alice_nnunet.model.views import joined
from alice_nnunet.pretrain.training.config import read_settings
from tests.helpers.methods import drawn, follows, normed_layers, short_run, small_model, widths


def parts(model, views):
    """q1, q2, k1, k2 of Algorithm 1."""
    online = [
        model.predictor(model.projector(model.encoder(view).mean(1)))
        for view in (views.first, views.second)
    ]
    target = [
        model.target_projector(model.target_encoder(view).mean(1))
        for view in (views.first, views.second)
    ]
    return [tensor.detach() for tensor in (*online, *target)]


def test_the_loss_is_algorithm_1_written_out():
    model = small_model("moco_v3")
    with torch.no_grad():
        for parameter in model.target_encoder.parameters():
            parameter.mul_(1.1)  # the target is another network
    query, key = drawn(model)
    views = joined(query, key)
    q1, q2, k1, k2 = parts(model, views)

    loss = 0.0
    for q, k in ((q1, k2), (q2, k1)):
        for n in range(len(q)):
            scores = [math.exp(cosine_similarity(q[n], k[m], 0) / 0.2) for m in range(len(k))]
            loss += 2 * 0.2 * -math.log(scores[n] / sum(scores)) / len(q)
    assert model(query, key).losses["l_ctr"].item() == pytest.approx(loss, rel=1e-4)


def test_the_hint_says_what_the_loss_is_where_nothing_is_known():
    model = small_model("moco_v3", "temperature=0.3")
    alike = torch.ones(6, 8)  # every crop is as similar as every other
    unknown = 2 * model.contrast(alike, alike).item()
    assert unknown == pytest.approx(4 * 0.3 * math.log(6), rel=1e-5)
    assert "4 tau log(crops)" in model.hints[0]


def test_the_heads_are_those_of_section_5():
    model = small_model("moco_v3", "head_hidden=20", "channels=12")
    assert widths(model.projector) == [20, 20, 12] and widths(model.predictor) == [20, 12]

    # "all layers in both MLPs have BN"
    pooled = torch.randn(6, 24, generator=torch.Generator().manual_seed(0))
    projected = model.projector(pooled)
    torch.testing.assert_close(projected, normed_layers(pooled, model.projector, 3))
    expected = normed_layers(projected, model.predictor, 2)
    torch.testing.assert_close(model.predictor(projected), expected)


def test_the_defaults_are_those_of_the_paper():
    settings = MoCoSettings()
    assert (settings.temperature, settings.head_hidden, settings.channels) == (0.2, 4096, 256)
    assert read_settings("vit", "paper", [], None, "moco_v3").run["ema"] == 0.99


def test_the_target_is_a_moving_average():
    model = small_model("moco_v3")
    follows(model, model.target_encoder, model.encoder)
    model = small_model("moco_v3")
    follows(model, model.target_projector, model.projector)


def test_the_patch_projection_of_vit_stays_random():
    assert not any(p.requires_grad for p in small_model("moco_v3").encoder.patch_embed.parameters())
    free = small_model("moco_v3", "freeze_patches=false").encoder.patch_embed
    assert all(p.requires_grad for p in free.parameters())
    swin = small_model("moco_v3", encoder="swin").encoder
    assert all(p.requires_grad for p in swin.patch_embed.parameters())


def test_two_views_differ_and_keep_the_window():
    query, _ = drawn(small_model("moco_v3"))
    assert not torch.allclose(query.first, query.second)
    assert query.first.shape == query.second.shape == (3, 1, 32, 32, 32)


def test_it_learns():
    run = short_run("moco_v3")
    assert run.last < 0.95 * run.first and run.rank > 3


def test_wrong_settings_are_refused():
    with pytest.raises(ValueError, match="temperature"):
        MoCoSettings(temperature=0)
