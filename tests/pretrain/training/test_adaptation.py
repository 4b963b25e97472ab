"""The checkpoint's plan in nnssl's schema names parts that the checkpoint has."""

import json

import pytest
import torch

from alice_nnunet.checkpoint import load_pretraining
from alice_nnunet.model.encoders.registry import ENCODERS, build_encoder
from alice_nnunet.model.presets import PRESETS
from alice_nnunet.pretrain.training.adaptation import adaptation_plan
from alice_nnunet.pretrain.training.config import make_config, read_settings
from alice_nnunet.sharing.nnssl_schema import check_adaptation_plan
from tests.helpers.exporting import write_run

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


def read_as_nnunets_commands(path) -> dict:
    """What nnUNetv2_plan_like_dynamic and nnUNetv2_preprocess_like_nnssl read of a checkpoint.

    A restatement of nnU-Net 0e49508, experiment_planning/like_nnssl.py. Both read all of it before
    they write anything, and neither compares it with the network.
    """
    checkpoint = torch.load(path, weights_only=True, map_location="cpu")
    plan = checkpoint["nnssl_adaptation_plan"]
    configuration, *_ = plan["pretrain_plan"]["configurations"].values()
    return {
        "key_to_encoder": plan["key_to_encoder"],
        "key_to_stem": plan["key_to_stem"],
        "keys_to_in_proj": plan["keys_to_in_proj"],
        "key_to_lpe": plan["key_to_lpe"],
        "pt_num_in_channels": plan["pretrain_num_input_channels"],
        "pt_used_patchsize": configuration["patch_size"],
        "pt_recommended_downstream_patchsize": plan["recommended_downstream_patchsize"],
    }


def test_nnunets_commands_for_nnssl_refuse_a_checkpoint(tmp_path):
    """They would load none of its tensors, say "Loaded Network" and train from random weights."""
    path = write_run(tmp_path / "c.pth")
    with pytest.raises(KeyError, match="nnssl_adaptation_plan"):
        read_as_nnunets_commands(path)


def test_a_checkpoint_with_the_earlier_name_of_the_plan_loads(tmp_path):
    path = write_run(tmp_path / "c.pth")
    now = load_pretraining(path)
    before = torch.load(path, weights_only=True)
    before["nnssl_adaptation_plan"] = before.pop("adaptation_plan")
    torch.save(before, path)

    assert read_as_nnunets_commands(path)["key_to_encoder"] == "blocks"  # nothing stopped them
    loaded = load_pretraining(path)
    assert loaded.keys() == now.keys() and loaded["adaptation_plan"] == now["adaptation_plan"]
