import math

import numpy as np
import pytest
import torch
from torch.nn.functional import cosine_similarity

from alice_nnunet.errors import UserError
from alice_nnunet.model.methods.tang import TangSettings, cut_out
from alice_nnunet.model.tokens import unpatchify
from alice_nnunet.model.views import joined
from tests.helpers.methods import drawn, short_run, small_model
from tests.helpers.pretraining import method_config, noise


def test_the_three_losses_are_the_papers_written_out():
    model = small_model("tang", "weight_rotation=2")
    query, key = drawn(model)
    views = joined(query, key)
    whole = torch.cat([views.whole_1, views.whole_2])
    cut = torch.cat([views.cut_1, views.cut_2])
    quarters = torch.cat([views.quarters_1, views.quarters_2]).tolist()
    with torch.no_grad():
        tokens = model.encoder(torch.where(cut, 0, whole))
        pooled = tokens.mean(1)
        filled = unpatchify(model.inpainting(tokens), (2, 2, 2), model.unit)
        projected = model.contrast(pooled)
        turned = model.rotation(pooled)

    inpaint = (filled - whole).abs().mean().item()
    contrast = rotation = 0.0
    for n in range(12):
        partner = (n + 6) % 12
        scores = {
            m: math.exp(cosine_similarity(projected[n], projected[m], 0) / 0.5)
            for m in range(12)
            if m != n
        }
        contrast -= math.log(scores[partner] / sum(scores.values())) / 12
        chances = turned[n].exp() / turned[n].exp().sum()
        rotation -= math.log(chances[quarters[n]]) / 12

    output = model(query, key)
    assert output.losses["l_inpaint"].item() == pytest.approx(inpaint, rel=1e-4)
    assert output.losses["l_contrast"].item() == pytest.approx(contrast, rel=1e-4)
    assert output.losses["l_rotation"].item() == pytest.approx(rotation, rel=1e-4)
    assert output.loss.item() == pytest.approx(inpaint + contrast + 2 * rotation, rel=1e-4)


def test_the_contrast_is_lightlys():
    lightly = pytest.importorskip("lightly.loss")
    model = small_model("tang")
    projected = torch.nn.functional.normalize(torch.randn(12, 16), dim=-1)
    theirs = lightly.NTXentLoss(temperature=0.5)(projected[:6], projected[6:])
    assert model.nt_xent(projected).item() == pytest.approx(theirs.item(), rel=1e-4)


def test_a_view_is_its_crop_turned_about_the_body_axis():
    model = small_model("tang")
    query, _ = drawn(model)
    crops = noise(0, 3).query
    seen = set()
    for view, quarters in ((query.whole_1, query.quarters_1), (query.whole_2, query.quarters_2)):
        for crop, shown, k in zip(crops, view, quarters.tolist()):
            expected = crop
            for _ in range(k):  # y to x: 90 degrees in the axial plane
                expected = expected.transpose(-1, -2).flip(-2)
            assert torch.equal(shown, expected)
            seen.add(k)
    assert len(seen) > 1


def test_boxes_cover_their_share():
    cut = cut_out(20, (16, 24, 24), 0.3, torch.Generator().manual_seed(0))
    shares = cut.float().mean((1, 2, 3))
    assert cut.shape == (20, 16, 24, 24)
    assert shares.min() >= 0.3 and shares.max() < 0.3 + 0.5**3
    assert shares.std() > 0  # each crop has boxes of its own


@pytest.mark.parametrize("cut", [0.05, 0.3, 0.9])
def test_no_box_too_many_is_cut_out(cut):
    size = (6, 10, 9)
    found = cut_out(10, size, cut, torch.Generator().manual_seed(1))

    generator = torch.Generator().manual_seed(1)
    for crop in found:
        expected = np.zeros(size, bool)
        while expected.mean() < cut:
            drawn = torch.rand(2, 3, generator=generator).numpy()
            sides = [max(1, round(n * (0.1 + 0.4 * float(s)))) for n, s in zip(size, drawn[0])]
            starts = [round((n - s) * float(p)) for n, s, p in zip(size, sides, drawn[1])]
            z, y, x = (slice(first, first + side) for first, side in zip(starts, sides))
            expected[z, y, x] = True
        assert np.array_equal(crop.numpy(), expected)


def test_a_term_of_weight_0_is_not_computed():
    model = small_model("tang", "weight_rotation=0", "weight_inpainting=0")
    output = model(*drawn(model))
    assert list(output.losses) == ["l_contrast"]
    assert not model.rotation.weight.requires_grad


def test_it_learns():
    run = short_run("tang")
    assert run.last < 0.95 * run.first and run.rank > 3


def test_crops_that_are_not_square_are_refused():
    with pytest.raises(UserError, match=r"tang cannot train encoder vit: .* 32 x 48"):
        method_config("tang", "vit", "crop_size=32,32,48")


def test_oblong_voxels_are_refused():
    settings = TangSettings()
    assert settings.spacing_refusal((1.5, 0.76, 0.76)) is None
    assert "1.5 x 0.76 x 0.8 mm" in settings.spacing_refusal((1.5, 0.76, 0.8))


@pytest.mark.parametrize("wrong", [{"cut_out": 0.0}, {"temperature": 0}, {"weight_contrast": -1}])
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        TangSettings(**wrong)
    with pytest.raises(ValueError, match="one of the three weights"):
        TangSettings(weight_inpainting=0, weight_contrast=0, weight_rotation=0)
