import pytest
import torch

from alice_nnunet.model.methods.dino import DINOSettings
from alice_nnunet.model.views import joined
from alice_nnunet.pretrain.training.config import read_settings
from tests.helpers.methods import drawn, follows, short_run, small_model


def parts(model, views) -> list[torch.Tensor]:
    """What student and teacher say of both views."""
    student = [model.head(model.encoder(view).mean(1)) for view in (views.first, views.second)]
    teacher = [
        model.target_head(model.target_encoder(view).mean(1))
        for view in (views.first, views.second)
    ]
    return [tensor.detach() for tensor in (*student, *teacher)]


def test_the_loss_is_algorithm_1_written_out():
    model = small_model("dino")
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
    model = small_model("dino")
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


def test_the_teacher_is_a_moving_average():
    model = small_model("dino")
    follows(model, model.target_encoder, model.encoder)
    model = small_model("dino")
    follows(model, model.target_head, model.head)


def test_the_student_learns_what_a_fixed_teacher_says():
    # With a teacher that moves, the loss rises to log(K) first, for longer than a test can wait.
    fixed = short_run("dino", "ema=1.0", "center_momentum=1.0", steps=36)
    assert fixed.last < 0.8 * fixed.first


def test_the_loss_rises_first_and_tokens_stay_apart():
    run = short_run("dino", steps=24)
    assert run.first < run.last
    assert run.rank > 3


@pytest.mark.parametrize("wrong", [{"prototypes": 0}, {"center_momentum": 1.5}])
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        DINOSettings(**wrong)
