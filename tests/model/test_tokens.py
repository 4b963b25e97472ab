import pytest
import torch

from alice_nnunet.model.tokens import (
    masked_from,
    patchify,
    put_tokens,
    random_keep,
    random_keep_blocks,
    take_tokens,
    unpatchify,
)

UNIT = (2, 3, 4)


def test_patchify_equals_slices():
    crop = torch.rand(2, 3, 4, 9, 8)
    tokens = patchify(crop, UNIT)

    index = 0
    for z in range(0, 4, 2):
        for y in range(0, 9, 3):
            for x in range(0, 8, 4):
                block = crop[:, :, z : z + 2, y : y + 3, x : x + 4]
                assert torch.equal(tokens[:, index], block.reshape(2, -1))
                index += 1

    assert tokens.shape[1] == index
    assert torch.equal(unpatchify(tokens, (2, 3, 2), UNIT), crop)


def test_patchify_refuses_a_crop_that_does_not_divide():
    with pytest.raises(ValueError, match=r"multiple of \(2, 3, 4\)"):
        patchify(torch.rand(1, 1, 4, 8, 8), UNIT)


@pytest.mark.parametrize("ratio, visible", [(0, 32), (0.25, 24), (0.75, 8), (0.95, 2), (0.999, 1)])
def test_random_keep_shows_the_right_number_of_different_tokens(ratio, visible):
    keep = random_keep(5, 32, ratio, torch.Generator().manual_seed(0))
    assert keep.shape == (5, visible)
    assert all(len(set(row.tolist())) == visible for row in keep)
    masked = masked_from(keep, 32)
    assert (masked.sum(1) == 32 - visible).all() and not masked.gather(1, keep).any()


def test_random_keep_depends_on_the_generator_alone():
    def draw(seed: int) -> torch.Tensor:
        return random_keep(4, 64, 0.75, torch.Generator().manual_seed(seed))

    torch.manual_seed(1)
    first = draw(0)
    torch.manual_seed(2)
    assert torch.equal(first, draw(0)) and not torch.equal(first, draw(1))


def test_every_token_is_kept_equally_often():
    keep = random_keep(20_000, 8, 0.75, torch.Generator().manual_seed(0))
    share = keep.flatten().bincount() / keep.numel()
    assert (share - 1 / 8).abs().max() < 0.01


def test_random_keep_refuses_a_wrong_ratio():
    for ratio in (-0.1, 1.0):
        with pytest.raises(ValueError, match="mask_ratio"):
            random_keep(1, 8, ratio, torch.Generator())


def test_blocks_are_hidden_or_shown_as_a_whole():
    grid, block = (4, 6, 4), (2, 3, 1)
    keep = random_keep_blocks(3, grid, block, 0.75, torch.Generator().manual_seed(0))
    assert keep.shape == (3, 4 * 6) and all(len(set(row.tolist())) == 24 for row in keep)

    shown = ~masked_from(keep, 4 * 6 * 4).view(3, *grid)
    for crop in shown:
        for z in range(0, 4, 2):
            for y in range(0, 6, 3):
                for x in range(4):
                    assert crop[z : z + 2, y : y + 3, x].float().mean() in (0, 1)


def test_blocks_of_one_token_are_tokens():
    one_by_one = random_keep(5, 24, 0.75, torch.Generator().manual_seed(3))
    blocks = random_keep_blocks(5, (2, 3, 4), (1, 1, 1), 0.75, torch.Generator().manual_seed(3))
    assert torch.equal(one_by_one, blocks)
    with pytest.raises(ValueError, match=r"no whole number of blocks \(2, 2, 2\)"):
        random_keep_blocks(1, (2, 3, 4), (2, 2, 2), 0.75, torch.Generator())


def test_take_and_put_are_indexing():
    tokens = torch.rand(2, 6, 5)
    keep = torch.tensor([[4, 0, 3], [1, 2, 5]])
    background = torch.rand(2, 6, 5)

    taken = take_tokens(tokens, keep)
    filled = put_tokens(taken, keep, background)
    for b in range(2):
        for n in range(6):
            expected = tokens[b, n] if n in keep[b] else background[b, n]
            assert torch.equal(filled[b, n], expected)
        assert torch.equal(taken[b], torch.stack([tokens[b, n] for n in keep[b]]))
