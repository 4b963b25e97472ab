import pytest
import torch

from alice_nnunet.model.losses import (
    cosine_loss,
    dino_loss,
    info_nce_loss,
    moments,
    normalised_tokens,
    reconstruction_loss,
    spread,
)

UNIT = (2, 2, 2)


def test_eq_1_is_the_loop():
    torch.manual_seed(0)
    crop, predicted, masked = (
        torch.rand(2, 1, 4, 4, 2),
        torch.randn(2, 4, 8),
        torch.tensor([[1, 0, 1, 1], [0, 0, 1, 0]]).bool(),
    )
    total, count = 0.0, 0
    for b in range(2):
        for n, (z, y) in enumerate(((0, 0), (0, 2), (2, 0), (2, 2))):
            if masked[b, n]:
                voxels = crop[b, 0, z : z + 2, y : y + 2, :].reshape(-1)
                normalised = (voxels - voxels.mean()) / (voxels.var() + 1e-6).sqrt()
                total += ((predicted[b, n] - normalised) ** 2).mean()
                count += 1
    assert torch.allclose(reconstruction_loss(predicted, crop, masked, UNIT), total / count)


def test_eq_1_ignores_visible_tokens_and_air_is_no_noise():
    crop, masked = torch.rand(1, 1, 4, 4, 4), torch.zeros(1, 8).bool()
    masked[0, 3] = True
    predicted = torch.zeros(1, 8, 8)
    changed = predicted.clone()
    changed[0, 4] = 100
    assert torch.equal(
        reconstruction_loss(predicted, crop, masked, UNIT),
        reconstruction_loss(changed, crop, masked, UNIT),
    )
    assert not normalised_tokens(torch.full((1, 1, 2, 2, 2), 0.3), UNIT).any()


def test_eq_1_refuses_nothing_hidden():
    with pytest.raises(ValueError, match="at least one hidden"):
        reconstruction_loss(
            torch.zeros(1, 8, 8), torch.zeros(1, 1, 4, 4, 4), torch.zeros(1, 8).bool(), UNIT
        )


def test_cosine_loss_is_two_minus_two_cos():
    torch.manual_seed(0)
    a, b = torch.randn(3, 4, 5), torch.randn(3, 4, 5)
    cosines = [
        (a[i, j] @ b[i, j] / (a[i, j].norm() * b[i, j].norm())).item()
        for i in range(3)
        for j in range(4)
    ]
    assert cosine_loss(a, b).item() == pytest.approx(2 - 2 * sum(cosines) / 12, abs=1e-5)
    assert cosine_loss(a, 3 * a).item() == pytest.approx(0, abs=1e-5) and cosine_loss(
        a, -a
    ).item() == pytest.approx(4, abs=1e-5)


def test_info_nce_is_the_loop():
    torch.manual_seed(0)
    a, b = torch.randn(2, 3, 5), torch.randn(2, 3, 5)
    flat_a, flat_b = a.flatten(0, 1), b.flatten(0, 1)
    cos = lambda x, y: (x @ y / (x.norm() * y.norm())).item()
    expected = 0.0
    for i in range(6):
        scores = torch.tensor([cos(flat_a[i], flat_b[j]) / 0.2 for j in range(6)])
        expected -= scores.log_softmax(0)[i].item() / 6
    assert info_nce_loss(a, b, 0.2).item() == pytest.approx(expected, abs=1e-5)


def test_dino_loss_is_the_cross_entropy():
    torch.manual_seed(0)
    a, b = torch.randn(4, 5), torch.randn(4, 5)
    expected = (
        -sum(((b[i] / 0.04).softmax(0) * (a[i] / 0.1).log_softmax(0)).sum() for i in range(4)) / 4
    )
    assert torch.allclose(dino_loss(a, b), expected)


@pytest.mark.parametrize("loss", [cosine_loss, lambda a, b: info_nce_loss(a, b, 0.2), dino_loss])
def test_the_teacher_gets_no_gradient(loss):
    student, teacher = torch.randn(6, 4, requires_grad=True), torch.randn(6, 4, requires_grad=True)
    loss(student, teacher).backward()
    assert student.grad.abs().sum() > 0 and teacher.grad is None


def test_spread_is_one_for_noise_and_zero_for_collapse():
    assert spread(moments(torch.randn(2000, 64)), 2000).item() == pytest.approx(1, abs=0.02)
    assert spread(
        moments(torch.randn(1, 64).expand(100, -1) * torch.rand(100, 1)), 100
    ).item() == pytest.approx(0, abs=1e-5)


def test_spread_is_the_deviation_and_comes_from_the_parts_of_a_batch():
    features = 5 + torch.randn(6, 4, 32)
    vectors = torch.nn.functional.normalize(features.flatten(0, 1), dim=-1)
    parts = torch.stack([moments(part) for part in features.split(2)]).mean(0)
    for values in (moments(features), parts):
        assert spread(values, 24).item() == pytest.approx(
            vectors.std(0).mean().item() * 32**0.5, rel=1e-5
        )


def test_info_nce_of_a_part_looks_among_the_teachers_of_the_whole_batch():
    a, b = torch.randn(2, 3, 4, 8).unbind(0)
    parts = [
        info_nce_loss(part, teacher, 0.2, b.flatten(0, 1), 4 * i)
        for i, (part, teacher) in enumerate(zip(a, b))
    ]
    assert torch.stack(parts).mean().item() == pytest.approx(
        info_nce_loss(a, b, 0.2).item(), abs=1e-5
    )
