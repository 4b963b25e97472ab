import math

import pytest
import torch
import torch.nn.functional as F

from alice_nnunet.matcher.training.contrast import contrastive_losses, info_nce

TEMPERATURE = 0.2


def vectors(*shape: int, seed: int) -> torch.Tensor:
    return F.normalize(
        torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64),
        dim=-1,
    )


def written_out(anchors, positives, candidates, allowed, hardness, hardest) -> float:
    """InfoNCE one anchor after the other."""
    total = 0.0
    for i, anchor in enumerate(anchors):
        numbers = [j for j in range(len(candidates)) if allowed[i][j]]
        hard = sorted(numbers, key=lambda j: -hardness[i][j].item())[:hardest]
        positive = math.exp(float(anchor @ positives[i]) / TEMPERATURE)
        negative = sum(math.exp(float(anchor @ candidates[j]) / TEMPERATURE) for j in hard)
        total -= math.log(positive / (positive + negative))
    return total / len(anchors)


@pytest.fixture
def drawn() -> dict:
    """Seven anchors, twelve candidates; each anchor ignores some, anchor 3 all, anchor 4 none."""
    generator = torch.Generator().manual_seed(0)
    allowed = torch.rand(7, 12, generator=generator) > 0.4
    allowed[3], allowed[4] = False, True
    return {
        "anchors": vectors(7, 5, seed=1),
        "positives": vectors(7, 5, seed=2),
        "candidates": vectors(12, 5, seed=3),
        "allowed": allowed,
        "hardness": torch.rand(7, 12, generator=generator, dtype=torch.float64),
    }


@pytest.mark.parametrize("hardest", [1, 4, 12, 100])
def test_it_is_infonce_over_the_hardest_that_are_allowed(drawn, hardest):
    assert info_nce(**drawn, hardest=hardest, temperature=TEMPERATURE).item() == pytest.approx(
        written_out(**drawn, hardest=hardest)
    )


def test_an_anchor_without_negatives_costs_nothing(drawn):
    drawn["allowed"][:] = False
    assert info_nce(**drawn, hardest=4, temperature=TEMPERATURE).item() == 0


def test_what_is_ignored_changes_nothing_and_learns_nothing(drawn):
    drawn["allowed"][:, 5] = False
    before = info_nce(**drawn, hardest=20, temperature=TEMPERATURE)
    changed = drawn["candidates"].clone()
    changed[5] = drawn["anchors"][0] * 50
    drawn["hardness"][:, 5] = 100
    changed.requires_grad_()
    after = info_nce(**drawn | {"candidates": changed}, hardest=20, temperature=TEMPERATURE)
    assert torch.equal(before, after)
    after.backward()
    assert (changed.grad[5] == 0).all() and torch.isfinite(changed.grad).all()
    assert (changed.grad.abs().sum(1) > 0).sum() == 11


def test_a_pair_that_is_ignored_sends_no_gradient_and_other_pairs_do(drawn):
    """Candidate 5 is a negative of anchor 4 alone: only anchor 4 may hear of it."""
    drawn["allowed"][:, 5] = False
    drawn["allowed"][4, 5] = True
    drawn["anchors"].requires_grad_()
    gradient = []
    for vector in (drawn["candidates"][5].clone(), -drawn["candidates"][5]):
        drawn["candidates"][5] = vector
        gradient += torch.autograd.grad(
            info_nce(**drawn, hardest=20, temperature=TEMPERATURE), drawn["anchors"]
        )
    same = [torch.equal(a, b) for a, b in zip(*gradient)]
    assert same == [True, True, True, True, False, True, True]


def test_only_the_hardest_enter(drawn):
    drawn["allowed"][:] = True
    drawn["hardness"][:, 2] = -1
    before = info_nce(**drawn, hardest=11, temperature=TEMPERATURE)
    changed = drawn | {"candidates": drawn["candidates"].clone()}
    changed["candidates"][2] *= -3
    assert torch.equal(before, info_nce(**changed, hardest=11, temperature=TEMPERATURE))
    assert not torch.equal(before, info_nce(**changed, hardest=12, temperature=TEMPERATURE))


@pytest.fixture
def batch() -> dict:
    """Three patches, two of them of volume 1, with six points each within 60 mm.

    Five points are not in both patches.
    """
    generator = torch.Generator().manual_seed(7)
    inside = torch.ones(3, 6, dtype=torch.bool)
    inside[0, 1] = inside[1, 4] = inside[1, 5] = inside[2, 0] = inside[2, 3] = False
    return {
        "first": (vectors(3, 6, 4, seed=4), vectors(3, 6, 4, seed=5)),
        "second": (vectors(3, 6, 4, seed=6), vectors(3, 6, 4, seed=7)),
        "inside": inside,
        "points": torch.rand(3, 6, 3, generator=generator) * 60,
        "volume": torch.tensor([1, 4, 1]),
    }


IGNORE = (20.0, 35.0)


def point_by_point(first, second, inside, points, volume, hardest) -> dict[str, float]:
    shown = [(b, k) for b in range(3) for k in range(6) if inside[b, k]]
    losses = {"fine": 0.0, "coarse": 0.0}
    for here, there in ((first, second), (second, first)):
        alike = {
            (p, o): float(here[0][p] @ there[0][o] + here[1][p] @ there[1][o])
            for p in shown
            for o in shown
        }
        for level, name in enumerate(losses):
            total = 0.0
            for p in shown:
                negatives = [
                    o
                    for o in shown
                    if (
                        math.dist(points[p], points[o]) > IGNORE[level]
                        if volume[o[0]] == volume[p[0]]
                        else name == "coarse"
                    )
                ]
                negatives = sorted(negatives, key=lambda o: -alike[p, o])[:hardest]
                similarities = [float(here[level][p] @ there[level][o]) for o in [p, *negatives]]
                exponents = [math.exp(s / TEMPERATURE) for s in similarities]
                total -= math.log(exponents[0] / sum(exponents))
            losses[name] += total / len(shown) / 2
    return losses


@pytest.mark.parametrize("hardest", [2, 6, 50])
def test_losses_are_those_of_each_point_both_ways(batch, hardest):
    found = contrastive_losses(**batch, ignore=IGNORE, hardest=hardest, temperature=TEMPERATURE)
    expected = point_by_point(**batch, hardest=hardest)
    assert {name: loss.item() for name, loss in found.items()} == pytest.approx(expected)


def test_fine_vectors_know_nothing_of_other_volumes(batch):
    """Other fine vectors in patch 0 change the gradient of patch 2, of the same volume, only."""
    gradients = []
    for seed in (20, 21):
        fine, second = batch["first"][0].clone(), batch["second"][0].clone().requires_grad_()
        fine[0] = vectors(6, 4, seed=seed)
        changed = {"first": (fine, batch["first"][1]), "second": (second, batch["second"][1])}
        loss = contrastive_losses(
            **batch | changed, ignore=IGNORE, hardest=50, temperature=TEMPERATURE
        )["fine"]
        gradients += torch.autograd.grad(loss, second)
    assert torch.allclose(gradients[0][1], gradients[1][1]) and not torch.allclose(
        gradients[0][2], gradients[1][2]
    )
    assert (gradients[0][~batch["inside"]] == 0).all() and (
        gradients[0][batch["inside"]] != 0
    ).any()


def test_the_hardness_itself_is_not_learned(batch):
    """No gradient of the fine loss reaches coarse vectors, which only choose its negatives."""
    coarse = batch["first"][1].requires_grad_()
    fine = batch["first"][0].requires_grad_()
    loss = contrastive_losses(**batch, ignore=IGNORE, hardest=2, temperature=TEMPERATURE)["fine"]
    assert torch.autograd.grad(loss, coarse, allow_unused=True, retain_graph=True)[0] is None
    assert torch.autograd.grad(loss, fine)[0].abs().sum() > 0


def test_patches_that_agree_cost_less(batch):
    apart = contrastive_losses(**batch, ignore=IGNORE, hardest=50, temperature=TEMPERATURE)
    agreeing = contrastive_losses(
        **batch | {"second": batch["first"]}, ignore=IGNORE, hardest=50, temperature=TEMPERATURE
    )
    assert all(agreeing[name] < apart[name] for name in apart)
