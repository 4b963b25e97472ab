import pytest
import torch

from alice_nnunet.model.methods.dino import DINOSettings
from alice_nnunet.model.views import joined
from alice_nnunet.pretrain.training.config import read_settings
from alice_nnunet.pretrain.training.state import build_state
from alice_nnunet.pretrain.training.step import train_step
from tests.helpers.methods import ct_crops, drawn, follows, short_run, small_model
from tests.helpers.pretraining import CPU, SPACING, method_config, noise


def parts(model, views) -> list[torch.Tensor]:
    """What student and teacher say of both views."""
    student = [model.head(model.encoder(view).mean(1)) for view in (views.first, views.second)]
    teacher = [
        model.target_head(model.target_encoder(view).mean(1))
        for view in (views.first, views.second)
    ]
    return [tensor.detach() for tensor in (*student, *teacher)]


def test_the_loss_is_algorithm_1_written_out():
    model = small_model("dino", "teacher_temperature=0.04")
    model.center.copy_(torch.linspace(-0.1, 0.1, len(model.center)))
    query, key = drawn(model)
    s1, s2, t1, t2 = parts(model, joined(query, key))

    def entropy(teacher, student) -> float:
        total = 0.0
        for t, s in zip(teacher, student):
            target = ((t - model.center) / 0.04).exp()
            target = target / target.sum()
            given = (s / 0.1).exp()
            total -= (target * (given / given.sum()).log()).sum().item()
        return total / len(teacher)

    expected = (entropy(t1, s2) + entropy(t2, s1)) / 2
    assert model(query, key).losses["l_dino"].item() == pytest.approx(expected, rel=1e-4)


def test_the_loss_is_lightlys():
    lightly = pytest.importorskip("lightly.loss")
    model = small_model("dino", "teacher_temperature=0.04")
    query, key = drawn(model)
    s1, s2, t1, t2 = parts(model, joined(query, key))

    theirs = lightly.DINOLoss(len(model.center), 0.04, 0.04, 0, 0.1)
    expected = theirs([t1, t2], [s1, s2], epoch=0)
    assert model(query, key).losses["l_dino"].item() == pytest.approx(expected.item(), rel=1e-4)


def test_the_center_is_eq_4():
    model = small_model("dino")
    model.center.fill_(1.0)
    query, key = drawn(model)
    _, _, t1, t2 = parts(model, joined(query, key))
    model.after_step(1.0, model(query, key).running)
    expected = 0.9 * torch.ones_like(model.center) + 0.1 * torch.cat([t1, t2]).mean(0)
    torch.testing.assert_close(model.center, expected)


def test_the_defaults_are_those_of_the_paper():
    settings = DINOSettings()
    assert (settings.student_temperature, settings.teacher_temperature) == (0.1, 0.04)
    assert (settings.head_hidden, settings.head_bottleneck) == (2048, 256)
    assert settings.center_momentum == 0.9
    assert read_settings("vit", "tiny", [], None, "dino").run["ema"] == 0.996


@pytest.mark.parametrize("method", ["dino", "ibot"])
def test_the_prototypes_rest_in_the_first_share_of_a_run(method):
    config = method_config(method, "vit", "iterations=5", "rest_prototypes=0.4")
    state = build_state(config, CPU)
    head = state.model.head

    moved = []
    for step in range(4):
        prototypes = head.last.weight.detach().clone()
        hidden = head.mlp[0].weight.detach().clone()
        train_step(state, noise(step, 4), config, SPACING)
        moved.append(not torch.equal(prototypes, head.last.weight))
        assert step == 0 or not torch.equal(hidden, head.mlp[0].weight)
    assert moved == [False, False, True, True]


def test_the_teacher_is_a_moving_average():
    model = small_model("dino")
    follows(model, model.target_encoder, model.encoder)
    model = small_model("dino")
    follows(model, model.target_head, model.head)


def test_the_student_learns_what_a_fixed_teacher_says():
    fixed = short_run("dino", "ema=1.0", "center_momentum=1.0", steps=36)
    assert fixed.last < 0.8 * fixed.first


@pytest.mark.parametrize("method", ["dino", "ibot"])
def test_it_learns_from_real_ct(method):
    settings = ["prototypes=512", "head_bottleneck=64", "head_hidden=128", "width=96", "lr=3e-4"]
    run = short_run(method, *settings, steps=180, crops=ct_crops)
    # The loss rises at first, while the center learns what all crops share.
    assert run.last < 0.92 * max(run.sixths)
    assert run.rank > 4


@pytest.mark.parametrize("wrong", [{"prototypes": 0}, {"center_momentum": 1.5}])
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        DINOSettings(**wrong)
