import math

import pytest
import torch

from alice_nnunet.model.tokens import patchify
from alice_nnunet.model.views import (
    Augmentation,
    at_places,
    augment,
    token_middles,
    view_to_crop,
)

GRID, UNIT, SPACING = (6, 8, 8), (2, 2, 2), (3.0, 2.0, 2.0)
TOKENS = math.prod(GRID)
SIZE = tuple(g * u for g, u in zip(GRID, UNIT))


def drawn(angles=(0.0, 0.0, 0.0), scale=1.0, flips=(1.0, 1.0, 1.0)) -> Augmentation:
    return Augmentation(
        torch.tensor([angles]),
        torch.tensor([scale]),
        torch.tensor([flips]),
        torch.ones(1),
        torch.zeros(1),
    )


def matrix_of(augmentation: Augmentation) -> torch.Tensor:
    return view_to_crop(augmentation, SIZE, SPACING)


def test_middles_are_those_of_the_tokens():
    expected = [
        [(x + 0.5) / 4 - 1, (y + 0.5) / 4 - 1, (z + 0.5) / 3 - 1]
        for z in range(6)
        for y in range(8)
        for x in range(8)
    ]
    assert torch.allclose(token_middles(GRID), torch.tensor(expected))


def test_a_view_that_was_not_moved_is_read_as_it_is():
    tokens = torch.rand(1, TOKENS, 5)
    read, shown = at_places(tokens, matrix_of(drawn()), GRID)
    assert torch.allclose(read, tokens, atol=1e-5) and shown.all()


@pytest.mark.parametrize("axis", range(3))
def test_flips_are_undone(axis):
    tokens, flips = torch.rand(1, TOKENS, 5), [1.0, 1.0, 1.0]
    flips[axis] = -1.0
    read, shown = at_places(tokens, matrix_of(drawn(flips=tuple(flips))), GRID)
    assert (
        torch.allclose(read.view(*GRID, 5), tokens.view(*GRID, 5).flip(axis), atol=1e-5)
        and shown.all()
    )


@pytest.mark.parametrize(
    "augmentation",
    [
        drawn(angles=(0.5, 0.0, 0.0)),
        drawn(angles=(0.4, -0.2, 0.3), scale=0.8),
        drawn(angles=(-0.5, 0.2, 0.1), scale=1.25, flips=(1.0, -1.0, 1.0)),
    ],
    ids=range(3),
)
def test_what_the_augmentation_did_is_undone(augmentation):
    """Images that are the coordinates: read in the moved view, they name the crop's place."""
    z, y, x = torch.meshgrid(*((torch.arange(n) + 0.5) / n * 2 - 1 for n in SIZE), indexing="ij")
    crop = torch.stack([x, y, z, torch.ones_like(x)])[None]  # (1, 4, D, H, W)
    view = augment(crop, augmentation, SPACING)
    tokens = torch.stack(
        [patchify(view[:, c : c + 1], UNIT).mean(-1) for c in range(4)], -1
    )  # (1, N, 4)
    pure = (
        patchify(view[:, 3:], UNIT).amin(-1, keepdim=True) > 0.9999
    ).float()  # nothing in it comes from outside
    read, shown = at_places(torch.cat([tokens[..., :3], pure], -1), matrix_of(augmentation), GRID)
    usable = shown & (read[..., 3] > 0.999) & inner(augmentation)
    assert usable.sum() >= 20
    assert torch.allclose(read[..., :3][usable], token_middles(GRID)[None][usable], atol=1e-3)


def inner(augmentation: Augmentation) -> torch.Tensor:
    """Places that in the view lie between the middles of tokens: nothing is extrapolated. (1, N)"""
    inverse = torch.linalg.inv(matrix_of(augmentation)[0])
    where = torch.stack([inverse @ middle for middle in token_middles(GRID)])
    limit = torch.tensor([1 - 1 / n for n in GRID[::-1]])
    return (where.abs() <= limit + 1e-6).all(-1)[None]


def test_what_the_view_does_not_show_is_said():
    _, shown = at_places(
        torch.rand(1, TOKENS, 2), matrix_of(drawn(scale=1.6)), GRID
    )  # a larger anatomy: the rim is out of the view
    z, y, x = token_middles(GRID).view(*GRID, 3).abs().unbind(-1)[::-1]
    assert torch.equal(shown.view(GRID), (z * 1.6 <= 1) & (y * 1.6 <= 1) & (x * 1.6 <= 1))
    assert not shown.all() and shown.any()
