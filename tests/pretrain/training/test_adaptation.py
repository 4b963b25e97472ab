"""The checkpoint's plan in nnssl's schema names parts that the checkpoint has."""

import json

import pytest

from alice_nnunet.model.encoders.registry import ENCODERS, build_encoder
from alice_nnunet.model.presets import PRESETS
from alice_nnunet.pretrain.training.adaptation import adaptation_plan
from alice_nnunet.pretrain.training.config import make_config, read_settings
from alice_nnunet.sharing.nnssl_schema import check_adaptation_plan

CONFIGURATION = {
    "data_identifier": "a",
    "preprocessor_name": "b",
    "normalization_schemes": ["CTNormalization"],
    "use_mask_for_norm": [False],
    "resampling_fn_data": "c",
    "resampling_fn_data_kwargs": {},
    "resampling_fn_seg": "d",
    "resampling_fn_seg_kwargs": {},
    "spacing": [3, 3, 3],
    "patch_size": [32, 64, 64],
}
PLANS = {
    "dataset_name": "Dataset022_X",
    "plans_name": "P",
    "original_median_spacing_after_transp": [3, 3, 3],
    "image_reader_writer": "R",
    "transpose_forward": [0, 1, 2],
    "transpose_backward": [0, 1, 2],
    "configurations": {"3d_fullres": CONFIGURATION},
    "experiment_planner_used": "alice-preprocess",
}


@pytest.mark.parametrize("encoder", sorted(PRESETS))
def test_keys_are_in_the_weights_and_the_class_is_the_encoders(encoder):
    config = make_config("Dataset022_X", read_settings(encoder, "tiny"))
    plan = json.loads(json.dumps(adaptation_plan(PLANS, config)))
    names = build_encoder(encoder, config.encoder_arguments).state_dict()
    assert any(name.startswith(plan["key_to_encoder"] + ".") for name in names)
    assert any(name.startswith(plan["key_to_stem"] + ".") for name in names)
    assert all(f"{key}.weight" in names for key in plan["keys_to_in_proj"])
    assert plan["key_to_lpe"] is None or plan["key_to_lpe"] in names
    assert (
        plan["architecture_plans"]["arch_class_name"].rsplit(".", 1)[1]
        == ENCODERS[encoder].__name__
    )
    check_adaptation_plan(plan, names, "c.pth")
