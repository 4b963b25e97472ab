"""The method: its three losses, which weights are trained, and the target branch."""

import copy

import pytest
import torch

from alice_nnunet.model.encoders.registry import build_encoder
from alice_nnunet.model.encoders.vit import ViT
from alice_nnunet.model.losses import (
    cosine_loss,
    moments,
    reconstruction_loss,
    second_moments,
    spread,
)
from alice_nnunet.model.methods.alice import Alice
from alice_nnunet.model.presets import PRESETS
from alice_nnunet.model.pretraining.settings import AliceSettings
from alice_nnunet.model.tokens import patchify, unpatchify
from alice_nnunet.model.views import Views, at_places, make_views, vectors_at
from tests.helpers.pretraining import PAPER, assert_same_gradients

CROP = (32, 32, 48)
SPACING = (3.0, 3.0, 3.0)
SMALL = {
    **PAPER,
    "head_hidden": 32,
    "head_bottleneck": 16,
    "channels": 24,
    "decoder_width": 24,
    "decoder_depth": 1,
    "decoder_heads": 2,
}


def build(**changes) -> Alice:
    torch.manual_seed(0)
    return Alice(ViT(1, CROP, width=24, depth=2, heads=2), 1, AliceSettings(**{**SMALL, **changes}))


def views(model: Alice, seed: int = 0, batch: int = 2):
    generator = torch.Generator().manual_seed(seed)
    crops = torch.rand(2, batch, 1, *CROP, generator=generator)
    numbers = torch.Generator().manual_seed(seed)
    anatomy = torch.randn(2, batch, 12, model.method.anatomy_channels, generator=numbers)
    anatomy[:, :, ::5] = 0  # outside the body
    both = [make_views(crop, model.unit, SPACING, model.method, generator) for crop in crops]
    for of_one, vectors in zip(both, anatomy):
        of_one.anatomy = vectors
    return both


OPTIONS = [
    {},
    {"predictor": False, "ema_casa": False, "center_teacher": False},
    {"predictor": False, "ema_casa": False},
    {"predictor": False},
    {"ema_casa": False},
    {"head": "byol"},
    {"similarity": "infonce"},
    {"similarity": "dino"},
    {"target_mask_ratio": 0.5},
    {"online_flips": True},
    {"weight_r": 0},
    {"weight_dv": 0},
    {"weight_st": 0},
    {"dv_by": "place"},
    {"dv_by": "place", "weight_st": 0, "memory": 0},
    {"weight_an": 1.0},
    {"dv_by": "place", "weight_an": 1.0, "online_part": 0.6},
    {"weight_dv": 0, "weight_st": 0, "weight_an": 1.0},
    {"weight_dv": 0, "weight_st": 0, "similarity": "dino"},
    {"weight_r": 0, "weight_dv": 0, "ema_casa": False},
]


def test_forward_is_the_three_equations():
    model = build().eval()
    query, key = views(model)
    output = model(query, key)

    # Step by step, one crop at a time
    sides = []
    some_h = []  # of which the effective rank is measured: 8 tokens of a crop at most, here 6 of 12
    for view in (query, key):
        visible = model.encoder(view.online, view.keep)
        predicted, tokens = model.decoder(visible, view.keep)
        h = model.phi(tokens)
        y = model.psi(model.target_encoder(view.target))
        l_r = reconstruction_loss(predicted, view.online, view.masked, model.unit)
        s = model.casa(visible, h)
        t = model.target_casa(visible, y)
        sides.append((l_r, h.mean(1), y.mean(1), s, t))
        some_h.append(h[:, ::2])
    (r_q, h_q, y_q, s_q, t_q), (r_k, h_k, y_k, s_k, t_k) = sides

    l_r = r_q + r_k
    p_q, p_k = model.predictors["dv"](torch.cat([h_q, h_k])).chunk(2)
    l_dv = cosine_loss(p_q, y_k) + cosine_loss(p_k, y_q)
    p_q, p_k = model.predictors["st"](torch.cat([s_q, s_k])).chunk(2)
    l_st = cosine_loss(p_q, t_q) + cosine_loss(p_k, t_k)

    for name, expected in (("l_r", l_r), ("l_dv", l_dv), ("l_st", l_st)):
        assert torch.allclose(output.losses[name], expected, atol=1e-6), name
    assert torch.allclose(output.loss, 10 * l_r + l_dv + l_st, atol=1e-5)

    ranked = output.second_moments
    assert set(ranked) == {"cls", "H", "S", "T", "V"}
    assert torch.allclose(ranked["H"], second_moments(torch.cat(some_h)))
    assert torch.allclose(ranked["S"], second_moments(torch.cat([s_q, s_k])))

    spread_s = spread(moments(torch.cat([s_q, s_k])), 2 * s_q[..., 0].numel())
    assert torch.allclose(output.spreads["S"], spread_s)
    assert torch.allclose(output.spreads["cls"], spread(moments(torch.cat([y_q, y_k])), 4))


def with_air(model: Alice, seed: int = 0) -> tuple[Views, Views]:
    """Views, with two thirds of the queries air."""
    query, key = views(model, seed)
    query.online[..., CROP[2] // 3 :] = 0
    return query, key


def test_air_does_not_count_in_eq_1():
    model = build().eval()
    query, key = with_air(model)
    air = patchify(query.online, model.unit).eq(0).all(-1)
    assert 0 < air.float().mean() < 1

    def l_r(model) -> torch.Tensor:
        return model(query, key).losses["l_r"]

    changed = copy.deepcopy(model)
    changed.decoder.to_voxels.bias.data += 1
    both = []
    for one in (model, changed):
        halves = []
        for view in (query, key):
            predicted, _ = one.decoder(one.encoder(view.online, view.keep), view.keep)
            counted = view.masked & ~patchify(view.online, model.unit).eq(0).all(-1)
            halves.append(reconstruction_loss(predicted, view.online, counted, model.unit))
        both.append(sum(halves))
        assert torch.allclose(l_r(one), both[-1], atol=1e-6)

    output = model(query, key)
    assert output.content.item() == pytest.approx(1 - air.float().mean().item() / 2)

    everything = build(reconstruct="all").eval()
    everything.load_state_dict(model.state_dict())
    assert abs(l_r(everything) - l_r(model)) > 1e-3


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_every_trained_parameter_and_no_target_gets_a_gradient(options):
    model = build(**options)
    for seed in (0, 1):
        model(*views(model, seed)).loss.backward()

    fixed = {
        id(p) for module in (*model.targets(), *model.untrained()) for p in module.parameters()
    }
    for name, parameter in model.named_parameters():
        if id(parameter) in fixed:
            assert parameter.grad is None and not parameter.requires_grad, name
        else:
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("name", ["swin", "nnformer"])
def test_every_parameter_of_a_windowed_encoder_is_trained(name):
    torch.manual_seed(0)
    encoder = build_encoder(
        name, {"in_channels": 2, "crop_size": (32, 64, 64), **PRESETS[name]["tiny"].encoder}
    )
    model = Alice(encoder, 2, AliceSettings(**SMALL))

    generator = torch.Generator().manual_seed(0)
    query, key = (
        make_views(torch.rand(1, 2, 32, 64, 64), model.unit, SPACING, model.method, generator)
        for _ in range(2)
    )
    model(query, key).loss.backward()

    targets = {id(p) for module in model.targets() for p in module.parameters()}
    for parameter_name, parameter in model.named_parameters():
        assert (parameter.grad is None) == (id(parameter) in targets), parameter_name
        assert parameter.grad is None or parameter.grad.abs().sum() > 0, parameter_name


def test_no_gradient_reaches_the_target_even_if_it_could():
    """Targets made trainable still get none: the branch is cut, not only frozen."""
    model = build()
    for module in model.targets():
        module.requires_grad_(True)
    model(*views(model)).loss.backward()
    assert all(p.grad is None for module in model.targets() for p in module.parameters())


def test_shared_casa_gets_its_gradient_from_the_student_alone():
    model = build(ema_casa=False, weight_r=0, weight_dv=0).eval()
    query, key = views(model)
    model(query, key).loss.backward()
    grads = [p.grad.clone() for p in model.casa.parameters()]
    model.zero_grad()

    for view in (query, key):
        branches = model.branches(view)
        student = model.predict("st", branches.student)
        teacher = model.center("st", branches.teacher)
        model.similarity(student, teacher).backward()

    assert all(torch.allclose(g, p.grad, atol=1e-7) for g, p in zip(grads, model.casa.parameters()))


@pytest.mark.parametrize(
    "options", [{}, {"head": "byol"}, {"target_mask_ratio": 0.5}, {"dv_by": "place"}], ids=str
)
def test_crops_together_give_what_each_alone_gives(options):
    results = []
    for separately in (False, True):
        model = build(**options)
        model.separately = separately
        query, key = views(model)
        output = model(query, key)
        output.loss.backward()
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        results.append((output, gradients))

    (ours, our_gradients), (theirs, their_gradients) = results
    torch.testing.assert_close(ours.losses, theirs.losses)
    torch.testing.assert_close(ours.running, theirs.running)
    assert_same_gradients(our_gradients, their_gradients)


@pytest.mark.parametrize(
    "options, idle",
    [
        ({}, set()),
        ({"weight_dv": 0}, {"predictors.dv"}),
        ({"weight_st": 0}, {"casa", "target_casa", "predictors.st"}),
        (
            {"weight_dv": 0, "weight_st": 0},
            {"target_encoder", "phi", "psi", "casa", "target_casa"}
            | {"predictors.dv", "predictors.st"},
        ),
    ],
)
def test_nothing_runs_that_no_term_needs(options, idle):
    model = build(**options)
    names = ["encoder", "target_encoder", "phi", "psi", "casa", "target_casa"]
    names += ["decoder", "predictors.dv", "predictors.st"]
    calls = dict.fromkeys(names, 0)

    def count(name):
        def hook(module, inputs, output):
            calls[name] += 1

        return hook

    for name in names:
        model.get_submodule(name).register_forward_hook(count(name))
    query, key = views(model)
    output = model(query, key)
    output.loss.backward()
    model.after_step(0.9, output.running)

    assert {name for name, number in calls.items() if number == 0} == idle
    for name in calls.keys() - idle:  # Q and K go through networks together
        assert calls[name] == (2 if name.startswith("predictors") else 1), name
    assert (query.target is None) == ("target_encoder" in idle)


@pytest.mark.parametrize("off", [("st",), ("dv",), ("dv", "st"), ("r",), ("r", "dv")])
def test_a_term_of_weight_zero_is_not_reported_and_leaves_the_others_alone(off):
    whole = build()
    part = build(**{f"weight_{term}": 0 for term in off})
    assert whole.state_dict().keys() == part.state_dict().keys()
    expected = whole(*views(whole))
    output = part(*views(part))

    on = [term for term in ("r", "dv", "st") if term not in off]
    features = {"r": [], "dv": ["cls"], "st": ["S", "T"]}
    assert list(output.losses) == [f"l_{term}" for term in on]
    assert list(output.spreads) == [name for term in on for name in features[term]]
    for name, loss in output.losses.items():
        assert torch.equal(loss, expected.losses[name])
    for name, spread_of in output.spreads.items():
        assert torch.equal(spread_of, expected.spreads[name])


def test_eq_1_refuses_nothing_hidden():
    model = build(mask_ratio=0.01)  # of 12 tokens
    with pytest.raises(ValueError, match="at least one hidden"):
        model(*views(model))


@pytest.mark.parametrize("term", ["r", "dv", "st"])
def test_a_weight_of_zero_switches_a_term_off(term):
    weights = {f"weight_{t}": float(t == term) for t in ("r", "dv", "st")}
    model = build(**weights).eval()
    output = model(*views(model))
    assert torch.allclose(output.loss, output.losses[f"l_{term}"])


def test_hidden_voxels_reach_the_loss_only_as_the_target_of_eq_1():
    model = build(weight_r=0).eval()
    query, key = views(model)
    hidden = query.masked[..., None].float().expand(-1, -1, 16**3)
    changed = copy.copy(query)
    changed.online = query.online + 50 * unpatchify(hidden, (2, 2, 3), model.unit)

    first = model(query, key)
    second = model(changed, key)
    assert torch.equal(first.losses["l_dv"], second.losses["l_dv"])
    assert torch.equal(first.losses["l_st"], second.losses["l_st"])
    assert torch.equal(first.reconstruction.predicted, second.reconstruction.predicted)


@pytest.mark.parametrize("ema_casa", [True, False])
def test_after_step_is_the_formula(ema_casa):
    model = build(ema_casa=ema_casa, head="byol")
    pairs = [("target_encoder", "encoder"), ("psi", "phi")]
    if ema_casa:
        pairs.append(("target_casa", "casa"))

    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p))
    before = {target: copy.deepcopy(getattr(model, target).state_dict()) for target, _ in pairs}
    model.after_step(0.9, {})

    for target, online in pairs:
        parameters = dict(getattr(model, online).named_parameters())
        for name, value in getattr(model, target).state_dict().items():
            expected = 0.9 * before[target][name] + 0.1 * parameters[name]
            assert torch.allclose(value, expected, atol=1e-6), name


def test_the_target_starts_as_the_online_branch():
    model = build()
    for target, online in (
        (model.target_encoder, model.encoder),
        (model.psi, model.phi),
        (model.target_casa, model.casa),
    ):
        weights = zip(target.state_dict().values(), online.state_dict().values())
        assert all(torch.equal(a, b) for a, b in weights)


def test_the_center_is_the_running_mean_of_the_teachers():
    model = build()
    query, key = views(model)
    output = model(query, key)
    teachers = torch.cat([model.branches(view).teacher for view in (query, key)])
    assert not model.center_st.any()  # forward changes nothing

    model.after_step(1.0, output.running)
    assert torch.allclose(model.center_st, 0.1 * teachers.mean((0, 1)), atol=1e-6)
    centered = model.center("st", teachers)
    assert torch.allclose(centered, teachers - 0.1 * teachers.mean((0, 1)), atol=1e-6)


@pytest.mark.parametrize(
    "options, terms",
    [
        ({"similarity": "dino"}, {"dv", "st"}),
        ({"center_teacher": False}, set()),
        ({"similarity": "infonce"}, set()),
        ({}, {"st"}),
        ({"dv_by": "place"}, {"dv", "st"}),
        ({"weight_an": 1.0}, {"st", "an"}),
    ],
)
def test_which_targets_are_centered(options, terms):
    model = build(**options)
    model.after_step(1.0, model(*views(model)).running)
    moved = {
        name.removeprefix("center_")
        for name, buffer in model.named_buffers()
        if name.startswith("center") and buffer.any()
    }
    assert moved == terms


@pytest.mark.parametrize(
    "options",
    [
        {"mask_ratio": 1.0},
        {"similarity": "l2"},
        {"head": "linear"},
        {"mask_ratio": 0.0},
        {"weight_r": -1.0},
        {"weight_r": 0.0, "weight_dv": 0.0, "weight_st": 0.0},
        {"dv_by": "organ"},
        {"memory": -1},
        {"weight_an": -1.0},
        {"weight_an": 1.0, "online_flips": True},
        {"dv_by": "place", "online_flips": True},
        {"dv_by": "place", "target_mask_ratio": 0.5},
        {"online_part": 0.0},
        {"online_part": 1.5},
        {"flip_axes": "xw"},
        {"flip_axes": ""},
        {"decoder_width": 25},
        {"temperature": 0.0},
        {"channels": 0},
    ],
    ids=str,
)
def test_wrong_choices_are_refused(options):
    with pytest.raises(ValueError):
        build(**options)


@pytest.mark.parametrize("part", [1.0, 0.5])
def test_invariance_by_place_is_the_loop_over_visible_tokens(part):
    """One crop, one token at a time; the second step knows the crops of the first as well."""
    model = build(
        dv_by="place", memory=8, temperature=0.3, target_flips=False, online_part=part
    ).eval()
    first = model(*views(model, 0))
    model.after_step(0.9, first.running, first.remembered)
    query, key = views(model, 1)
    output = model(query, key)

    sides = []
    for view in (query, key):
        visible = model.phi(model.encoder(view.online, view.keep))
        sides.append((view, visible, model.psi(model.target_encoder(view.target))))
    crops = [
        (view, b, visible[b], target[b] - model.center_dv)
        for view, visible, target in sides
        for b in range(2)
    ]
    keys = []
    for view, b, _, target in crops:
        asking = (key if view is query else query).places
        places = None if part == 1 else asking[b : b + 1]
        read, shown = at_places(target[None], view.moved[b : b + 1], model.encoder.grid, places)
        keys.append((read[0], shown[0]))

    total = 0.0
    count = 0
    for i, (view, b, visible, _) in enumerate(crops):
        partner = (i + 2) % 4
        for token, place in zip(visible, view.keep[b].tolist()):
            if not keys[partner][1][place]:
                continue
            there = [keys[j][0][place] for j in range(4) if j != i and keys[j][1][place]]
            there += [old[place] for old in model.memory if old[place].any()]
            right = torch.cosine_similarity(token, keys[partner][0][place], dim=0) / 0.3
            all_of_them = torch.stack([torch.cosine_similarity(token, k, dim=0) for k in there])
            total = total + (all_of_them / 0.3).logsumexp(0) - right
            count += 1
    assert torch.allclose(output.losses["l_dv"], 2 * total / count, atol=1e-5)


def test_the_memory_holds_the_last_crops_and_forgets_the_oldest():
    model = build(dv_by="place", memory=6).eval()
    outputs = []
    for seed in range(3):
        outputs.append(model(*views(model, seed)))
        model.after_step(1.0, {}, outputs[-1].remembered)
    assert torch.equal(model.memory, torch.cat([outputs[2].remembered, outputs[1].remembered[:2]]))


def test_by_place_the_center_is_that_of_each_place():
    model = build(dv_by="place").eval()
    query, key = views(model)
    output = model(query, key)
    targets = torch.cat([model.branches(view).target for view in (query, key)])
    model.after_step(1.0, output.running, output.remembered)
    assert model.center_dv.shape == targets.shape[1:]
    assert torch.allclose(model.center_dv, 0.1 * targets.mean(0), atol=1e-6)


@pytest.mark.parametrize("part", [1.0, 0.5])
def test_naming_is_the_loop_over_visible_tokens_in_both_bodies(part):
    model = build(weight_an=2.0, anatomy_channels=6, online_part=part).eval()
    first = model(*views(model, 0))
    model.after_step(0.9, first.running)
    query, key = views(model, 1)
    output = model(query, key)

    total = 0.0
    body = model.center_an[:6] / model.center_an[6]
    for seen, other in ((query, key), (key, query)):
        own_vectors, vectors = (
            vectors_at(view.anatomy, seen.places, model.encoder.grid) for view in (seen, other)
        )
        for b in range(2):
            named = model.anatomy(model.encoder(seen.online, seen.keep)[b])
            for row, place in enumerate(seen.keep[b].tolist()):
                if own_vectors[b, place].any() and vectors[b, place].any():
                    vector = vectors[b, place] - body
                    total = total + 2 - 2 * torch.cosine_similarity(named[row], vector, dim=0)
    assert torch.allclose(output.losses["l_an"], total / (2 * query.keep.shape[1]), atol=1e-5)
    l_r, l_dv, l_st = (output.losses[name] for name in ("l_r", "l_dv", "l_st"))
    assert torch.allclose(
        output.loss, 10 * l_r + l_dv + l_st + 2 * output.losses["l_an"], atol=1e-5
    )


def test_the_mean_over_the_body_leaves_out_what_is_outside():
    model = build(weight_an=1.0, anatomy_channels=6).eval()
    query, key = views(model)
    model.after_step(1.0, model(query, key).running)
    vectors = torch.cat([query.anatomy, key.anatomy]).flatten(0, 1)
    expected = torch.stack([vector for vector in vectors if vector.any()]).mean(0)
    assert torch.allclose(model.center_an[:6] / model.center_an[6], expected, atol=1e-5)


def test_without_the_matchers_vectors_nothing_is_named():
    model = build(weight_an=1.0).eval()
    query, key = views(model)
    query.anatomy = key.anatomy = None
    assert set(model(query, key).losses) == {"l_r", "l_dv", "l_st"}
