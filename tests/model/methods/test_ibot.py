import copy

import pytest
import torch

from alice_nnunet.model.methods.ibot import IBOTSettings
from alice_nnunet.model.pretraining.method import Drawing
from alice_nnunet.model.tokens import hide, patchify
from alice_nnunet.model.views import joined
from tests.helpers.methods import drawn, follows, short_run, small_model


def entropy(teacher: torch.Tensor, center: torch.Tensor, student: torch.Tensor) -> float:
    """-P(teacher) log P(student) of one vector, written out."""
    target = ((teacher - center) / 0.04).double().exp()
    given = (student / 0.1).double().exp()
    return -(target / target.sum() * (given / given.sum()).log()).sum().item()


@torch.no_grad()
def of_views(model, views) -> dict[str, torch.Tensor]:
    """What student and teacher say of tokens and views."""
    said = {}
    for name, view, masked in (
        ("u", views.u, views.masked_u),
        ("v", views.v, views.masked_v),
    ):
        seen = model.encoder(hide(view, masked, model.mask_token, model.unit))
        intact = model.target_encoder(view)
        said[f"tokens s {name}"] = model.head(seen)
        said[f"view s {name}"] = model.head(seen.mean(1))
        said[f"tokens t {name}"] = model.target_head(intact)
        said[f"view t {name}"] = model.target_head(intact.mean(1))
    return said


def moved(*settings: str):
    """A model whose mask token and centers are not 0."""
    model = small_model("ibot", "teacher_temperature=0.04", *settings)
    with torch.no_grad():
        model.mask_token.copy_(torch.linspace(0, 1, len(model.mask_token)))
        model.center_cls.copy_(torch.linspace(-0.1, 0.1, len(model.center_cls)))
        model.center_mim.copy_(torch.linspace(0.1, -0.1, len(model.center_mim)))
    return model


def test_both_losses_are_those_of_algorithm_1_written_out():
    model = moved()
    query, key = drawn(model, pairs=4)
    views = joined(query, key)
    said = of_views(model, views)
    crops = len(views)

    l_cls = 0.0
    l_mim = 0.0
    for crop in range(crops):
        for seen, other in (("u", "v"), ("v", "u")):
            teacher, student = said[f"view t {other}"][crop], said[f"view s {seen}"][crop]
            l_cls += entropy(teacher, model.center_cls, student) / 2 / crops

        for name, masked in (("u", views.masked_u[crop]), ("v", views.masked_v[crop])):
            tokens = [n for n in range(len(masked)) if masked[n]]
            for n in tokens:
                teacher = said[f"tokens t {name}"][crop, n]
                student = said[f"tokens s {name}"][crop, n]
                l_mim += entropy(teacher, model.center_mim, student) / len(tokens) / 2 / crops

    losses = model(query, key).losses
    assert losses.keys() == {"l_mim", "l_cls"}
    assert losses["l_cls"].item() == pytest.approx(l_cls, rel=1e-4)
    assert losses["l_mim"].item() == pytest.approx(l_mim, rel=1e-4)


def test_the_loss_of_tokens_is_lightlys():
    lightly = pytest.importorskip("lightly.loss")
    model = moved()
    query, key = drawn(model, pairs=4)
    views = joined(query, key)
    said = of_views(model, views)

    expected = 0.0
    for name, masked in (("u", views.masked_u), ("v", views.masked_v)):
        theirs = lightly.IBOTPatchLoss(len(model.center_mim), 0.04, 0.1)
        theirs.center.center.copy_(model.center_mim)
        teacher, student = said[f"tokens t {name}"][masked], said[f"tokens s {name}"][masked]
        expected += theirs(teacher, student, masked[:, None]).item() / 2  # tokens as one row
    assert expected > 0
    assert model(query, key).losses["l_mim"].item() == pytest.approx(expected, rel=1e-4)


def test_l_dv_compares_the_two_people_of_a_pair():
    model = moved("weight_dv=0.5")
    query, key = drawn(model)
    said = of_views(model, joined(query, key))

    l_dv = 0.0
    for crop in range(6):
        person = (crop + 3) % 6  # Q and then K
        for seen, other in (("u", "v"), ("v", "u")):
            teacher, student = said[f"view t {other}"][person], said[f"view s {seen}"][crop]
            l_dv += entropy(teacher, model.center_cls, student) / 2 / 6
    output = model(query, key)
    assert output.losses["l_dv"].item() == pytest.approx(l_dv, rel=1e-4)
    expected = output.losses["l_mim"] + output.losses["l_cls"] + 0.5 * output.losses["l_dv"]
    torch.testing.assert_close(output.loss, expected)
    assert model.terms == ("l_mim", "l_cls", "l_dv")


def test_with_casa_the_answers_of_masked_and_intact_views_are_compared():
    model = moved("casa=true")
    query, key = drawn(model)
    views = joined(query, key)

    with torch.no_grad():
        tokens = model.encoder(hide(views.u, views.masked_u, model.mask_token, model.unit))
        s = model.head.prototypes(model.casa(tokens, model.head.mlp(tokens)))
        intact = model.target_head.mlp(model.target_encoder(views.u))
        t = model.target_head.prototypes(model.target_casa(tokens, intact))
    loss, mean = model.hidden_tokens(tokens, model.target_encoder(views.u), views.masked_u)
    torch.testing.assert_close(mean, t.mean((0, 1)))

    expected = 0.0
    for crop in range(6):
        hidden = views.masked_u[crop].nonzero().flatten().tolist()
        for n in hidden:
            expected += entropy(t[crop, n], model.center_mim, s[crop, n]) / len(hidden) / 6
    assert loss.item() == pytest.approx(expected, rel=1e-4)

    model(query, key).loss.backward()
    assert all(p.grad is not None for p in model.casa.parameters())
    assert all(p.grad is None for p in model.target_casa.parameters())


def test_half_the_views_lose_a_tenth_to_a_half_of_their_tokens():
    model = small_model("ibot", "crop_size=64,64,64")
    crops = torch.zeros(1, 1, 64, 64, 64).expand(40, -1, -1, -1, -1)

    views = model.make_views(crops, Drawing(torch.Generator().manual_seed(0), (3.0, 3.0, 3.0)))
    shares = torch.cat([views.masked_u, views.masked_v]).float().mean(1)
    assert 25 <= (shares == 0).sum() <= 55
    some = shares[shares > 0]
    assert 0.09 < some.min() < 0.2 and 0.4 < some.max() <= 0.5


def test_a_hidden_token_is_the_mask_token():
    crop = torch.rand(2, 2, 4, 4, 4)
    masked = torch.zeros(2, 8, dtype=torch.bool)
    masked[0, 3] = True
    token = torch.arange(16.0)
    hidden = hide(crop, masked, token, (2, 2, 2))
    assert torch.equal(patchify(hidden, (2, 2, 2))[0, 3], token)
    restored = hidden.clone()
    restored[0, :, :2, 2:, 2:] = crop[0, :, :2, 2:, 2:]  # token 3 on a grid of 2 x 2 x 2
    assert torch.equal(restored, crop)


def test_the_teacher_and_both_centers_follow():
    for target, source in (("target_encoder", "encoder"), ("target_head", "head")):
        model = small_model("ibot")
        follows(model, getattr(model, target), getattr(model, source))
    model = small_model("ibot", "casa=true")
    follows(model, model.target_casa, model.casa)

    model = moved()
    query, key = drawn(model)
    said = of_views(model, joined(query, key))
    before = copy.deepcopy(model)
    model.after_step(1.0, model(query, key).running)
    for center, kind in (("center_cls", "view"), ("center_mim", "tokens")):
        both = torch.cat([said[f"{kind} t u"], said[f"{kind} t v"]]).flatten(0, -2).mean(0)
        expected = 0.9 * getattr(before, center) + 0.1 * both
        torch.testing.assert_close(getattr(model, center), expected)


def test_it_learns():
    # Centering lets the losses rise at first. Here teacher and centers stay what they are.
    fixed = short_run("ibot", "ema=1.0", "center_momentum=1.0")
    assert fixed.last < 0.8 * fixed.first


@pytest.mark.parametrize("wrong", [{"least_masked": 0.6}, {"prototypes": 0}, {"weight_dv": -1.0}])
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        IBOTSettings(**wrong)
