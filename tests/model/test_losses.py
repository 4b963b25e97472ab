import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from alice_nnunet.model.losses import (
    anatomy_loss,
    cosine_loss,
    dino_loss,
    effective_rank,
    has_content,
    info_nce_loss,
    moments,
    normalised_tokens,
    place_info_nce_loss,
    reconstruction_loss,
    second_moments,
    spread,
    voxels_of,
)
from alice_nnunet.model.tokens import patchify

UNIT = (2, 2, 2)


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return (a @ b / (a.norm() * b.norm())).item()


def test_eq_1_is_the_loop():
    torch.manual_seed(0)
    crop = torch.rand(2, 1, 4, 4, 2)
    predicted = torch.randn(2, 4, 8)
    masked = torch.tensor([[1, 0, 1, 1], [0, 0, 1, 0]]).bool()

    by_crop = []
    for b in range(2):
        losses = []
        for n, (z, y) in enumerate(((0, 0), (0, 2), (2, 0), (2, 2))):
            if masked[b, n]:
                voxels = crop[b, 0, z : z + 2, y : y + 2, :].reshape(-1)
                normalised = (voxels - voxels.mean()) / (voxels.var() + 1e-6).sqrt()
                losses.append(((predicted[b, n] - normalised) ** 2).mean())

        by_crop.append(torch.stack(losses).mean())

    expected = torch.stack(by_crop).mean()
    assert torch.allclose(reconstruction_loss(predicted, crop, masked, UNIT), expected)


def test_eq_1_weighs_crops_alike_and_adds_nothing_where_nothing_counts():
    torch.manual_seed(0)
    crop = torch.rand(3, 1, 4, 4, 2)
    predicted = torch.randn(3, 4, 8)
    counted = torch.tensor([[1, 0, 1, 1], [0, 0, 1, 0], [0, 0, 0, 0]]).bool()
    squares = (predicted - normalised_tokens(crop, UNIT)).square().mean(-1)

    expected = (squares[0, [0, 2, 3]].mean() + squares[1, 2]) / 3
    assert torch.allclose(reconstruction_loss(predicted, crop, counted, UNIT), expected)

    parts = [
        reconstruction_loss(predicted[i : i + 1], crop[i : i + 1], counted[i : i + 1], UNIT)
        for i in range(3)
    ]
    assert torch.allclose(torch.stack(parts).mean(), expected)


def test_each_channel_is_normalised_for_itself():
    torch.manual_seed(0)
    crop = torch.rand(2, 2, 4, 4, 2)
    crop[:, 1] *= 100

    by_channel = normalised_tokens(crop, UNIT).view(2, 4, 2, 8)
    assert torch.allclose(by_channel.mean(-1), torch.zeros(2, 4, 2), atol=1e-5)
    assert torch.allclose(by_channel.var(-1), torch.ones(2, 4, 2), atol=1e-3)
    for channel in range(2):
        alone = normalised_tokens(crop[:, channel : channel + 1], UNIT)
        assert torch.allclose(by_channel[:, :, channel], alone, atol=1e-5)

    together = normalised_tokens(crop, UNIT, "token")
    assert torch.allclose(together.var(-1), torch.ones(2, 4), atol=1e-3)
    assert together.view(2, 4, 2, 8)[:, :, 0].var() < 0.1

    assert torch.equal(normalised_tokens(crop, UNIT, "none"), patchify(crop, UNIT))


def test_content_is_more_than_one_value():
    crop = torch.zeros(1, 2, 4, 4, 2)
    crop[0, 1, 0, 2, 0] = 0.1  # in the second channel of the second token
    crop[0, :, 2:, :2] = 0.7  # the third: one value, not 0
    assert has_content(crop, UNIT).tolist() == [[False, True, False, False]]


def test_eq_1_ignores_visible_tokens_and_air_is_no_noise():
    crop = torch.rand(1, 1, 4, 4, 4)
    masked = torch.zeros(1, 8).bool()
    masked[0, 3] = True
    predicted = torch.zeros(1, 8, 8)
    changed = predicted.clone()
    changed[0, 4] = 100

    first = reconstruction_loss(predicted, crop, masked, UNIT)
    second = reconstruction_loss(changed, crop, masked, UNIT)
    assert torch.equal(first, second)
    assert not normalised_tokens(torch.full((1, 1, 2, 2, 2), 0.3), UNIT).any()


def test_cosine_loss_is_two_minus_two_cos():
    torch.manual_seed(0)
    a = torch.randn(3, 4, 5)
    b = torch.randn(3, 4, 5)

    cosines = [cosine(a[i, j], b[i, j]) for i in range(3) for j in range(4)]
    assert cosine_loss(a, b).item() == pytest.approx(2 - 2 * sum(cosines) / 12, abs=1e-5)
    assert cosine_loss(a, 3 * a).item() == pytest.approx(0, abs=1e-5)
    assert cosine_loss(a, -a).item() == pytest.approx(4, abs=1e-5)


def test_info_nce_is_the_loop():
    torch.manual_seed(0)
    a = torch.randn(2, 3, 5)
    b = torch.randn(2, 3, 5)
    students = a.flatten(0, 1)
    teachers = b.flatten(0, 1)

    expected = 0.0
    for i in range(6):
        scores = torch.tensor([cosine(students[i], teachers[j]) / 0.2 for j in range(6)])
        expected -= scores.log_softmax(0)[i].item() / 6
    assert info_nce_loss(a, b, 0.2).item() == pytest.approx(expected, abs=1e-5)


def test_dino_loss_is_the_cross_entropy():
    torch.manual_seed(0)
    a = torch.randn(4, 5)
    b = torch.randn(4, 5)

    total = 0.0
    for i in range(4):
        target = (b[i] / 0.04).softmax(0)
        total -= (target * (a[i] / 0.1).log_softmax(0)).sum()
    assert torch.allclose(dino_loss(a, b), total / 4)


@pytest.mark.parametrize("loss", [cosine_loss, lambda a, b: info_nce_loss(a, b, 0.2), dino_loss])
def test_the_teacher_gets_no_gradient(loss):
    student = torch.randn(6, 4, requires_grad=True)
    teacher = torch.randn(6, 4, requires_grad=True)
    loss(student, teacher).backward()
    assert student.grad.abs().sum() > 0 and teacher.grad is None


def test_spread_is_one_for_noise_and_zero_for_collapse():
    noise = torch.randn(2000, 64)
    assert spread(moments(noise), 2000).item() == pytest.approx(1, abs=0.02)

    one_direction = torch.randn(1, 64).expand(100, -1) * torch.rand(100, 1)
    assert spread(moments(one_direction), 100).item() == pytest.approx(0, abs=1e-5)


def test_spread_is_the_deviation_and_comes_from_the_parts_of_a_batch():
    features = 5 + torch.randn(6, 4, 32)
    vectors = F.normalize(features.flatten(0, 1), dim=-1)
    expected = vectors.std(0).mean().item() * 32**0.5

    parts = torch.stack([moments(part) for part in features.split(2)]).mean(0)
    for values in (moments(features), parts):
        assert spread(values, 24).item() == pytest.approx(expected, rel=1e-5)


def test_info_nce_of_a_part_looks_among_the_teachers_of_the_whole_batch():
    a, b = torch.randn(2, 3, 4, 8).unbind(0)
    everyones = b.flatten(0, 1)

    parts = [
        info_nce_loss(student, teacher, 0.2, everyones, first=4 * i)
        for i, (student, teacher) in enumerate(zip(a, b))
    ]
    whole = info_nce_loss(a, b, 0.2).item()
    assert torch.stack(parts).mean().item() == pytest.approx(whole, abs=1e-5)


def rank_by_hand(vectors: torch.Tensor) -> float:
    """Entropy rank of the eigenvalues of the explicit covariance of normalised vectors."""
    rows = vectors.double().numpy()
    rows = rows / np.sqrt((rows**2).sum(1, keepdims=True))
    variances = np.linalg.eigvalsh(np.cov(rows, rowvar=False, bias=True))
    shares = variances[variances > 1e-15] / variances.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))


def test_the_effective_rank_is_that_of_the_covariance():
    torch.manual_seed(0)
    features = 0.3 + torch.randn(4, 5, 8) * torch.linspace(0.1, 1, 8)
    rank = effective_rank(second_moments(features)).item()
    assert rank == pytest.approx(rank_by_hand(features.flatten(0, 1)), rel=1e-5)


def test_the_effective_rank_comes_from_the_parts_of_a_batch():
    torch.manual_seed(0)
    features = torch.randn(6, 4, 16)
    parts = torch.stack([second_moments(part) for part in features.split(2)]).mean(0)
    expected = rank_by_hand(features.flatten(0, 1))
    assert effective_rank(parts).item() == pytest.approx(expected, rel=1e-5)


def test_the_effective_rank_sees_what_spread_does_not():
    torch.manual_seed(0)
    one_line = torch.randn(64) * (torch.randint(0, 2, (1000, 1)) * 2.0 - 1)  # all +u or -u
    assert effective_rank(second_moments(one_line)).item() == pytest.approx(1, abs=1e-3)
    assert spread(moments(one_line), 1000) > 0.5

    noise = torch.randn(20_000, 16)
    assert effective_rank(second_moments(noise)).item() == pytest.approx(16, rel=0.01)
    assert effective_rank(second_moments(noise[:1].expand(50, -1))).item() == 0


def test_the_effective_rank_is_at_most_the_number_of_vectors_less_one():
    torch.manual_seed(0)
    rank = effective_rank(second_moments(torch.randn(5, 64))).item()
    assert 3 < rank < 4.001


def test_info_nce_by_place_is_the_loop():
    torch.manual_seed(0)
    student, keys = torch.randn(2, 3, 5), torch.randn(6, 3, 5)
    keys[4, 1] = 0  # not there
    match = [1, 0]
    own = [0, 1]
    losses = place_info_nce_loss(student, keys, torch.tensor(match), torch.tensor(own), 0.2)
    for b in range(2):
        for n in range(3):
            others = [j for j in range(6) if j != own[b] and keys[j, n].any()]
            total = sum(math.exp(cosine(student[b, n], keys[j, n]) / 0.2) for j in others)
            expected = -math.log(math.exp(cosine(student[b, n], keys[match[b], n]) / 0.2) / total)
            assert losses[b, n].item() == pytest.approx(expected, abs=1e-5)


def test_info_nce_by_place_has_finite_gradients_where_no_key_is_there_and_none_for_keys():
    student, keys = torch.randn(2, 3, 5, requires_grad=True), torch.randn(4, 3, 5)
    keys[:, 2] = 0
    keys.requires_grad_(True)
    losses = place_info_nce_loss(student, keys, torch.tensor([1, 0]), torch.tensor([0, 1]), 0.2)
    torch.where(torch.tensor([True, True, False]), losses, 0).sum().backward()
    assert torch.isfinite(student.grad).all() and student.grad[:, :2].any() and keys.grad is None


def test_a_place_that_is_the_same_everywhere_costs_the_logarithm_of_the_choices():
    """What tells tokens apart by their position alone must not lower the loss."""
    position = torch.randn(1, 7, 16)
    losses = place_info_nce_loss(
        position.expand(4, -1, -1),
        position.expand(12, -1, -1),
        torch.tensor([2, 3, 0, 1]),
        torch.arange(4),
        0.1,
    )
    assert torch.allclose(losses, torch.full((4, 7), math.log(11)), atol=1e-5)


def test_the_anatomy_loss_is_the_loop_over_places_in_the_body():
    torch.manual_seed(0)
    named, vectors, there = (
        torch.randn(2, 4, 5, requires_grad=True),
        torch.randn(2, 4, 5),
        torch.tensor([[1, 0, 1, 1], [0, 0, 1, 0]]),
    )
    total = 0.0
    for b, n in ((0, 0), (0, 2), (0, 3), (1, 2)):
        a, v = named[b, n].detach(), vectors[b, n]
        total += 2 - 2 * (a @ v / (a.norm() * v.norm())).item()
    loss = anatomy_loss(named, vectors, there)
    assert loss.item() == pytest.approx(total / 8, abs=1e-5)
    loss.backward()
    assert named.grad[0, 2].any() and not named.grad[0, 1].any()


@pytest.mark.parametrize("together", ["channel", "token", "none"])
def test_voxels_of_perfect_predictions_are_the_crop(together):
    torch.manual_seed(0)
    crop = torch.rand(2, 3, 4, 4, 2) * torch.tensor([1.0, 5.0, 0.1]).view(3, 1, 1, 1) + 2
    perfect = normalised_tokens(crop, UNIT, together)
    again = voxels_of(perfect, crop, UNIT, together)
    assert torch.allclose(again, patchify(crop, UNIT), atol=1e-4)

    # What is not normalised keeps the brightness that was predicted.
    brighter = voxels_of(perfect + 1, crop, UNIT, together) - again
    assert (brighter > 0).all()
    assert torch.allclose(brighter, torch.ones(()), atol=1e-4) == (together == "none")
