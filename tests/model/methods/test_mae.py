import pytest
import torch

from alice_nnunet.model.methods.mae import MAESettings
from alice_nnunet.model.tokens import patchify
from tests.helpers.methods import drawn, short_run, small_model


@pytest.mark.parametrize("normalise", ["token", "none"])
def test_the_loss_is_the_error_of_hidden_tokens(normalise):
    model = small_model("mae", f"normalise={normalise}").eval()
    query, key = drawn(model)
    output = model(query, key)

    errors = []
    for views in (query, key):
        predicted, _ = model.decoder(model.encoder(views.crop, views.keep), views.keep)
        tokens = patchify(views.crop, model.unit)
        for crop in range(len(views)):
            for token in range(tokens.shape[1]):
                if token in views.keep[crop]:
                    continue
                target = tokens[crop, token]
                if normalise == "token":
                    target = (target - target.mean()) / (target.var() + 1e-6).sqrt()
                errors.append((predicted[crop, token] - target).square().mean())
    assert output.losses["l_r"].item() == pytest.approx(torch.stack(errors).mean().item(), rel=1e-5)


def test_three_quarters_are_hidden():
    query, _ = drawn(small_model("mae"))
    assert query.masked.float().mean() == 0.75 and query.keep.shape == (3, 2)


def test_flips_mirror_the_crop():
    plain, _ = drawn(small_model("mae"))
    flipped, _ = drawn(small_model("mae", "flips=true"))
    assert torch.equal(plain.keep, flipped.keep)
    assert not torch.equal(plain.crop, flipped.crop)
    assert torch.allclose(plain.crop.mean((2, 3, 4)), flipped.crop.mean((2, 3, 4)))


def test_it_learns():
    run = short_run("mae", "normalise=none")
    assert run.last < 0.7 * run.first and run.rank > 1.5


@pytest.mark.parametrize(
    "wrong", [{"mask_ratio": 0.0}, {"mask_ratio": 1.0}, {"normalise": "all"}, {"decoder_heads": 7}]
)
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong)).partition("_heads")[0]):
        MAESettings(**wrong)
