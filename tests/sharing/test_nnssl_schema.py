"""Each field of nnssl's AdaptationPlan by itself: missing, of another kind, unknown."""

import copy

import pytest
import torch

from alice_nnunet.errors import UserError
from alice_nnunet.pretrain.training.adaptation import adaptation_plan
from alice_nnunet.pretrain.training.config import make_config, read_settings
from alice_nnunet.sharing.nnssl_schema import check_adaptation_plan
from tests.helpers.exporting import PLANS

# The fields of nnssl's dataclasses, as anchors/field.md (1A) lists them
FIELDS = {
    "": """
        architecture_plans pretrain_plan pretrain_num_input_channels
        recommended_downstream_patchsize key_to_encoder key_to_stem keys_to_in_proj key_to_lpe
    """,
    "architecture_plans": "arch_class_name arch_kwargs arch_kwargs_requiring_import",
    "pretrain_plan": """
        dataset_name plans_name original_median_spacing_after_transp image_reader_writer
        transpose_forward transpose_backward configurations experiment_planner_used
    """,
    "pretrain_plan.configurations.3d_fullres": """
        data_identifier preprocessor_name spacing_style normalization_schemes use_mask_for_norm
        resampling_fn_data resampling_fn_data_kwargs resampling_fn_mask resampling_fn_mask_kwargs
        spacing patch_size
    """,
}
WEIGHTS = {
    "patch_embed.weight": torch.zeros(4, 1, 2, 2, 2),
    "blocks.0.x": torch.zeros(1),
    "positions": torch.zeros(1),
}


@pytest.fixture
def plan() -> dict:
    return copy.deepcopy(
        adaptation_plan(
            PLANS,
            make_config("Dataset022_FLARE22", read_settings("vit", "tiny")),
        )
    )


def part(plan: dict, place: str) -> dict:
    for name in place.split(".") if place else ():
        plan = plan[name]
    return plan


def wrong(plan) -> str:
    with pytest.raises(UserError, match=r"in c.pth does not follow nnssl's schema") as caught:
        check_adaptation_plan(plan, WEIGHTS, "c.pth")
    return str(caught.value)


def test_ours_keeps_to_it(plan):
    check_adaptation_plan(plan, WEIGHTS, "c.pth")


@pytest.mark.parametrize(
    "place, name", [(place, name) for place, names in FIELDS.items() for name in names.split()]
)
def test_every_field_must_be_there_and_of_its_kind(plan, place, name):
    full = ".".join(filter(None, ("adaptation_plan", place, name)))

    without = copy.deepcopy(plan)
    del part(without, place)[name]
    assert f"{full} is missing" in wrong(without)

    other = copy.deepcopy(plan)
    part(other, place)[name] = 1.5
    assert full in wrong(other)


@pytest.mark.parametrize("place", FIELDS)
def test_an_unknown_field_is_refused(plan, place):
    part(plan, place)["more"] = 1
    assert "more is unknown" in wrong(plan)


@pytest.mark.parametrize(
    "place, name, value",
    [
        ("", "recommended_downstream_patchsize", [96, 96]),
        ("", "keys_to_in_proj", ["patch_embed", None]),
        ("", "pretrain_num_input_channels", True),
        ("pretrain_plan", "transpose_forward", [0, 1, 2.0]),
        ("pretrain_plan.configurations.3d_fullres", "spacing_style", "3mm"),
    ],
)
def test_values_inside_are_looked_at(plan, place, name, value):
    part(plan, place)[name] = value
    assert name in wrong(plan)


@pytest.mark.parametrize(
    "name, value, said",
    [
        ("key_to_encoder", "stages", "key_to_encoder is 'stages'"),
        ("key_to_stem", "patch", "key_to_stem is 'patch'"),
        ("keys_to_in_proj", ["blocks.0"], "no tensor blocks.0.weight"),
        ("key_to_lpe", "pos_embed", "key_to_lpe is 'pos_embed'"),
        ("pretrain_num_input_channels", 2, "takes 1"),
    ],
)
def test_keys_must_lead_to_tensors(plan, name, value, said):
    assert said in wrong({**plan, name: value})
