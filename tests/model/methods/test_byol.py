import pytest
import torch

from alice_nnunet.model.methods.byol import BYOLSettings
from alice_nnunet.model.views import joined
from alice_nnunet.pretrain.training.config import read_settings
from tests.helpers.methods import drawn, follows, normed_layers, short_run, small_model, widths


def parts(model, views) -> list[torch.Tensor]:
    """Predictions of both views, and the target's projections of both."""
    predicted = [
        model.predictor(model.projector(model.encoder(view).mean(1)))
        for view in (views.first, views.second)
    ]
    target = [
        model.target_projector(model.target_encoder(view).mean(1))
        for view in (views.first, views.second)
    ]
    return [tensor.detach() for tensor in (*predicted, *target)]


def test_the_loss_is_eq_2_written_out():
    model = small_model("byol")
    query, key = drawn(model)
    q, q_other, z, z_other = parts(model, joined(query, key))

    loss = 0.0
    for prediction, target in ((q, z_other), (q_other, z)):
        for p, t in zip(prediction, target):
            loss += ((p / p.norm() - t / t.norm()) ** 2).sum().item() / len(prediction)
    assert model(query, key).losses["l_byol"].item() == pytest.approx(loss, rel=1e-4)


def test_the_loss_is_lightlys():
    lightly = pytest.importorskip("lightly.loss")
    model = small_model("byol")
    query, key = drawn(model)
    q, q_other, z, z_other = parts(model, joined(query, key))

    cosine = lightly.NegativeCosineSimilarity()  # -cos, where BYOL has 2 - 2 cos
    theirs = 4 + 2 * (cosine(q, z_other) + cosine(q_other, z))
    assert model(query, key).losses["l_byol"].item() == pytest.approx(theirs.item(), rel=1e-4)


def test_the_heads_are_those_of_section_3_3():
    model = small_model("byol", "head_hidden=20", "channels=12")
    assert widths(model.projector) == widths(model.predictor) == [20, 12]

    # "the output of this MLP is not batch normalized"
    pooled = torch.randn(6, 24, generator=torch.Generator().manual_seed(0))
    projected = model.projector(pooled)
    torch.testing.assert_close(projected, normed_layers(pooled, model.projector, 1))
    expected = normed_layers(projected, model.predictor, 1)
    torch.testing.assert_close(model.predictor(projected), expected)


def test_the_defaults_are_those_of_the_paper():
    settings = BYOLSettings()
    assert (settings.head_hidden, settings.channels) == (4096, 256)
    assert read_settings("vit", "tiny", [], None, "byol").run["ema"] == 0.996


def test_the_target_is_a_moving_average():
    model = small_model("byol")
    follows(model, model.target_encoder, model.encoder)
    model = small_model("byol")
    follows(model, model.target_projector, model.projector)


def test_it_learns():
    run = short_run("byol")
    assert run.last < 0.9 * run.first and run.rank > 3


def test_wrong_settings_are_refused():
    with pytest.raises(ValueError, match="channels"):
        BYOLSettings(channels=0)
