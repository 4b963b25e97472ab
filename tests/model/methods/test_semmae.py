import pytest
import torch
import torch.nn.functional as F

from alice_nnunet.errors import UserError
from alice_nnunet.model.losses import reconstruction_loss
from alice_nnunet.model.methods.semmae import NumberedCrops, SemMAESettings, masking_order
from alice_nnunet.model.tokens import masked_from
from alice_nnunet.model.views import joined
from alice_nnunet.pretrain.training.state import build_state
from alice_nnunet.pretrain.training.step import train_step
from tests.helpers.methods import blobs, drawn, follows, short_run, small_model
from tests.helpers.pretraining import CPU, SPACING, method_config

PARTS = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2]])


def numbers(hardness: float, seed: int = 0) -> NumberedCrops:
    """What is drawn for one crop of 12 tokens in 3 parts."""
    generator = torch.Generator().manual_seed(seed)
    return NumberedCrops(
        torch.zeros(1, 1, 2, 2, 2),
        torch.rand(1, 12, generator=generator),
        torch.rand(1, 3, generator=generator),
        torch.tensor([hardness]),
    )


def hidden(order: torch.Tensor, number: int) -> list[int]:
    return order[0].argsort(descending=True)[:number].tolist()


@pytest.mark.parametrize("seed", range(5))
def test_at_first_each_part_loses_the_same_share(seed):
    order = masking_order(PARTS, numbers(0.0, seed), 6)
    lost = [PARTS[0, n].item() for n in hidden(order, 6)]
    assert sorted(lost) == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("seed", range(5))
def test_at_last_whole_parts_are_hidden(seed):
    drawn_numbers = numbers(1.0, seed)
    order = masking_order(PARTS, drawn_numbers, 6)
    ranked = drawn_numbers.of_parts[0].argsort(descending=True).tolist()
    lost = [PARTS[0, n].item() for n in hidden(order, 6)]
    assert sorted(lost, key=ranked.index) == [ranked[0]] * 4 + [ranked[1]] * 2


@pytest.mark.parametrize("seed", range(5))
def test_in_between_the_numbers_that_parts_lose_are_mixed(seed):
    drawn_numbers = numbers(0.5, seed)
    order = masking_order(PARTS, drawn_numbers, 6)
    ranked = drawn_numbers.of_parts[0].argsort(descending=True).tolist()
    lost = [PARTS[0, n].item() for n in hidden(order, 6)]
    # Half of 2, 2, 2 and half of 4, 2, 0
    assert [lost.count(part) for part in ranked] == [3, 2, 1]


def test_the_loss_is_the_reconstruction_of_what_the_order_hides():
    model = small_model("semmae").eval()
    query, key = drawn(model, progress=0.5)
    assert query.hardness.tolist() == [0.25] * 3
    views = joined(query, key)

    with torch.no_grad():
        belonging, _ = model.parts_of(views.crop)
        order = masking_order(belonging.argmax(-1), views, 6)
        keep = torch.stack([row.argsort()[:2] for row in order])
        predicted, _ = model.decoder(model.encoder(views.crop, keep), keep)
        masked = masked_from(keep, 8)
        expected = reconstruction_loss(predicted, views.crop, masked, model.unit, "token")
    output = model(query, key)
    assert output.losses["l_r"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert torch.equal(output.reconstruction.masked, masked[:3])


def test_parts_stand_for_tokens_as_written_out():
    model = small_model("semmae", "parts=3")
    query, _ = drawn(model)
    belonging, loss = model.parts_of(query.crop)

    with torch.no_grad():
        tokens = model.target_encoder(query.crop)
        expected = 0.0
        for crop in range(3):
            own = F.normalize(tokens[crop] - tokens[crop].mean(0), dim=-1)
            parts = F.normalize(model.part_embeddings, dim=-1)
            shares = (own @ parts.T / 0.1).softmax(-1)  # (8, 3)
            torch.testing.assert_close(belonging[crop], shares)
            means = [
                sum(shares[n, p] * own[n] for n in range(8)) / shares[:, p].sum() for p in range(3)
            ]
            for n in range(8):
                stood_for = sum(shares[n, p] * means[p] for p in range(3))
                expected += ((own[n] - stood_for) ** 2).sum().item() / 24
    assert loss.item() == pytest.approx(expected, rel=1e-4)


def test_parts_teach_the_encoder_nothing():
    model = small_model("semmae")
    output = model(*drawn(model))
    output.losses["l_part"].backward()
    assert all(p.grad is None for p in model.encoder.parameters())
    assert model.part_embeddings.grad.abs().sum() > 0


def test_the_encoder_of_the_parts_follows():
    model = small_model("semmae")
    follows(model, model.target_encoder, model.encoder)


def test_parts_stay_in_use():
    config = method_config("semmae", "vit", "iterations=30", "lr=1e-3", "lr_pairs=4")
    state = build_state(config, CPU)
    for step in range(30):
        train_step(state, blobs(step), config, SPACING)

    with torch.no_grad():
        belonging, _ = state.model.parts_of(torch.cat([blobs(100 + n).query for n in range(8)]))
    shares = belonging.argmax(-1).flatten().bincount(minlength=6) / (32 * 8)
    assert shares.min() > 0.02 and shares.max() < 0.5


def test_it_learns():
    run = short_run("semmae", "normalise=none")
    assert run.last < 0.95 * run.first and run.rank > 1.5


@pytest.mark.parametrize("encoder", ["swin", "nnformer"])
def test_encoders_with_windows_are_refused(encoder):
    with pytest.raises(UserError, match=f"semmae cannot train encoder {encoder}: .*-encoder vit"):
        method_config("semmae", encoder)


@pytest.mark.parametrize("wrong", [{"parts": 1}, {"mask_ratio": 0.0}, {"hardening": 0}])
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        SemMAESettings(**wrong)
