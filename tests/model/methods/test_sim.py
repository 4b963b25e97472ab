import pytest
import torch
import torch.nn.functional as F

from alice_nnunet.model.methods.sim import SIMSettings
from alice_nnunet.model.positions import sincos_positions
from alice_nnunet.model.pretraining.method import Drawing
from alice_nnunet.model.tokens import hide
from alice_nnunet.model.views import joined
from tests.helpers.methods import drawn, follows, short_run, small_model


def test_unigrad_is_the_formula_written_out():
    model = small_model("sim")
    generator = torch.Generator().manual_seed(0)
    y = torch.randn(2, 3, 24, generator=generator)
    z = torch.randn(2, 3, 24, generator=generator)

    targets = [(v - v.mean()) / (v.var(correction=0) + 1e-5).sqrt() for v in z.flatten(0, 1)]
    positive = negative = 0.0
    for predicted, target in zip(y.flatten(0, 1), targets):
        positive += ((predicted - target) ** 2).sum().item() / 6
        negative += sum((predicted @ other).item() ** 2 for other in targets) / 6 / 6
    expected = (positive + 0.02 * negative) / 24
    assert model.unigrad(y, z).item() == pytest.approx(expected, rel=1e-5)


def test_the_places_are_those_of_the_other_view():
    model = small_model("sim", "crop_size=32,32,48")
    generator = torch.Generator().manual_seed(0)
    # Each voxel says where it is: what a view shows at a place is where that place came from.
    z, y, x = torch.meshgrid(
        torch.arange(32.0), torch.arange(32.0), torch.arange(48.0), indexing="ij"
    )
    crops = torch.stack([z, y, x])[None] + 1
    drawing = Drawing(generator, (3.0, 2.0, 1.0))
    views = model.make_views(crops, drawing)

    checked = 0
    for n, place in enumerate(views.places[0]):
        voxel = [((n // 6) % 2 + 0.5) * 16 - 0.5, ((n // 3) % 2 + 0.5) * 16 - 0.5]
        voxel.append((n % 3 + 0.5) * 16 - 0.5)
        there = (place + 0.5) * 16 - 0.5  # voxels of the online view
        if min(there) < 1 or any(t > s - 2 for t, s in zip(there.tolist(), (32, 32, 48))):
            continue
        shown_there = at(views.online[0], there.tolist())
        shown_here = at(views.target[0], voxel)
        # Both have their own factor and shift of intensities: ratios of differences are free of it.
        same = relation(shown_here)
        other = relation(shown_there)
        assert same == pytest.approx(other, abs=0.05)
        checked += 1
    assert checked >= 2


def at(view: torch.Tensor, voxel: list[float]) -> torch.Tensor:
    """Values of all channels at a place between voxels."""
    size = torch.tensor(view.shape[1:])
    place = (torch.tensor(voxel) + 0.5) / size * 2 - 1
    return F.grid_sample(
        view[None], place.flip(0).view(1, 1, 1, 1, 3), align_corners=False
    ).flatten()


def relation(values: torch.Tensor) -> float:
    """What factor and shift leave of three values."""
    return ((values[0] - values[1]) / (values[2] - values[1])).item()


def test_positions_of_whole_tokens_are_the_tables():
    model = small_model("sim")
    z, y, x = torch.meshgrid(*[torch.arange(2.0)] * 3, indexing="ij")
    places = torch.stack([z, y, x], -1).view(1, 8, 3)
    torch.testing.assert_close(model.place_of(places), sincos_positions((2, 2, 2), 48))


def test_the_prediction_sees_visible_tokens_alone():
    model = small_model("sim").eval()
    query, key = drawn(model)
    first = model(query, key).losses["l_sim"]

    hidden = torch.ones(3, 8, dtype=torch.bool).scatter(1, query.keep, False)
    query.online = hide(query.online, hidden, torch.full((4096,), 7.0), model.unit)
    assert torch.equal(model(query, key).losses["l_sim"], first)
    query.target = query.target + torch.rand_like(query.target)
    assert not torch.equal(model(query, key).losses["l_sim"], first)


def test_with_casa_the_answers_are_compared():
    model = small_model("sim", "casa=true")
    query, key = drawn(model)
    output = model(query, key)
    visible = joined(query, key).keep.shape[1]
    assert output.vectors["T"] == 6 * visible

    output.loss.backward()
    assert all(p.grad is not None for p in model.casa.parameters())
    assert all(p.grad is None for p in model.target_casa.parameters())
    model = small_model("sim", "casa=true")
    follows(model, model.target_casa, model.casa)


def test_the_target_branch_follows():
    model = small_model("sim")
    follows(model, model.target_encoder, model.encoder)
    model = small_model("sim")
    follows(model, model.target_projector, model.projector)


@pytest.mark.parametrize(("frozen", "trained"), [("true", 0), ("false", 2)])
def test_the_patch_projection_stays_random(frozen, trained):
    model = small_model("sim", f"freeze_patches={frozen}")
    parameters = model.encoder.patch_embed.parameters()
    assert sum(parameter.requires_grad for parameter in parameters) == trained


def test_batch_norm_takes_away_what_all_tokens_share():
    spreads = {}
    for norm in ("batch", "layer"):
        model = small_model("sim", f"norm={norm}")
        query, key = drawn(model)
        spreads[norm] = model(query, key).spreads["T"].item()
    assert spreads["batch"] > 1.5 * spreads["layer"]


def test_it_learns():
    run = short_run("sim")
    assert run.last < 0.7 * run.first and run.rank > 3


@pytest.mark.parametrize(
    "wrong",
    [{"mask_ratio": 0.0}, {"decoder_heads": 7}, {"projector_depth": -1}, {"norm": "group"}],
)
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        SIMSettings(**wrong)
