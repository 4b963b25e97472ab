import math

import pytest
import torch
from torch.nn.functional import cosine_similarity

from alice_nnunet.model.losses import reconstruction_loss
from alice_nnunet.model.methods.cmae import CMAESettings
from alice_nnunet.model.views import joined, shifted
from tests.helpers.methods import drawn, follows, short_run, small_model


def test_both_losses_are_the_papers_written_out():
    model = small_model("cmae", "weight_contrast=0.5")
    query, key = drawn(model)
    views = joined(query, key)
    with torch.no_grad():
        visible = model.encoder(views.crop, views.keep)
        predicted, _ = model.pixel_decoder(visible, views.keep)
        _, features = model.feature_decoder(visible, views.keep)
        y_s = model.predictor(model.projector(features.mean(1)))
        y_t = model.target_projector(model.target_encoder(views.target).mean(1))

    l_c = 0.0
    for n in range(6):
        scores = [math.exp(cosine_similarity(y_s[n], y_t[m], 0) / 0.07) for m in range(6)]
        l_c -= math.log(scores[n] / sum(scores)) / 6
    l_r = reconstruction_loss(predicted, views.crop, views.masked, model.unit, "token")

    output = model(query, key)
    assert output.losses["l_c"].item() == pytest.approx(l_c, rel=1e-4)
    assert output.losses["l_r"].item() == pytest.approx(l_r.item(), rel=1e-5)
    assert output.loss.item() == pytest.approx(l_r.item() + 0.5 * l_c, rel=1e-4)


def test_without_the_contrast_it_is_a_masked_autoencoder():
    model = small_model("cmae", "weight_contrast=0")
    query, key = drawn(model)
    output = model(query, key)
    assert list(output.losses) == ["l_r"]
    output.loss.backward()
    trained = [p for p in model.parameters() if p.requires_grad]
    assert all(p.grad is not None for p in trained)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_shift_of_whole_voxels_moves_voxels(axis):
    crops = torch.rand(2, 1, 8, 8, 8)
    shift = torch.zeros(2, 3)
    shift[0, axis] = 2 / 8
    shift[1, axis] = -3 / 8

    moved = shifted(crops, shift)
    for crop, voxels in ((0, 2), (1, -3)):
        expected = crops[crop].roll(-voxels, axis + 1)
        outside = slice(8 - voxels, 8) if voxels > 0 else slice(0, -voxels)
        expected.movedim(axis + 1, 0)[outside] = 0
        torch.testing.assert_close(moved[crop], expected, atol=1e-5, rtol=0)


def test_the_target_view_is_whole_and_near():
    model = small_model("cmae", "intensity=0", "largest_shift=0")
    query, _ = drawn(model)
    torch.testing.assert_close(query.target, query.crop, atol=1e-5, rtol=0)
    query, _ = drawn(small_model("cmae"))
    assert not torch.allclose(query.target, query.crop, atol=0.01)


def test_the_momentum_branch_follows():
    model = small_model("cmae")
    follows(model, model.target_encoder, model.encoder)
    model = small_model("cmae")
    follows(model, model.target_projector, model.projector)


def test_it_learns():
    run = short_run("cmae", "normalise=none")
    assert run.last < 0.95 * run.first and run.rank > 3


@pytest.mark.parametrize(
    "wrong", [{"mask_ratio": 1.0}, {"largest_shift": -0.1}, {"normalise": "x"}]
)
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        CMAESettings(**wrong)
