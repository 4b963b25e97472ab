"""A checkpoint as alice-pretrain saves it: every module, optimizer, history, real plans."""

from pathlib import Path

import torch

from alice_nnunet.model.pretraining.registry import DEFAULT
from alice_nnunet.pretrain.training.adaptation import adaptation_plan
from alice_nnunet.pretrain.training.config import known_settings, make_config, read_settings
from alice_nnunet.pretrain.training.state import build_state, save_state
from tests.helpers.finetuning import SPACING, pretraining_data

CONFIGURATION = {
    "data_identifier": "AlicePretrainPlans_3d_fullres",
    "preprocessor_name": "DefaultPreprocessor",
    "batch_size": 8,
    "patch_size": [32, 64, 64],
    "spacing": SPACING,
    "normalization_schemes": ["CTNormalization"],
    "use_mask_for_norm": [False],
    "resampling_fn_data": "resample_data_or_seg_to_shape",
    "resampling_fn_data_kwargs": {"is_seg": False, "order": 3},
    "resampling_fn_seg": "resample_data_or_seg_to_shape",
    "resampling_fn_seg_kwargs": {"is_seg": True, "order": 1},
}
PLANS = {
    "dataset_name": "Dataset022_FLARE22",
    "plans_name": "AlicePretrainPlans",
    "original_median_spacing_after_transp": [3.0, 3.0, 3.0],
    "image_reader_writer": "NibabelIOWithReorient",
    "transpose_forward": [0, 1, 2],
    "transpose_backward": [0, 1, 2],
    "configurations": {"3d_fullres": CONFIGURATION},
    "experiment_planner_used": "alice-preprocess",
}
HISTORY = {
    "l_r": [[20, 1.75], [40, 1.5]],
    "spread cls": [[20, 0.3], [40, 0.25]],
    "rank V": [[20, 4.5], [40, 7.25]],
    "validation l_r": [[40, 1.625]],
}
LIGHT = ("head_hidden=32", "decoder_width=48", "decoder_depth=1", "decoder_heads=2")


def write_run(path: Path, encoder: str = "vit", *settings: str, method: str = DEFAULT) -> Path:
    """Write the checkpoint of a run at step 40 with seed 0.

    Args:
        path: of the file.
        encoder: vit, swin or nnformer.
        *settings: name=value, as in alice-pretrain --set.
        method: of pretraining.
    """
    known = known_settings(encoder, "tiny", method)["method"]
    light = [setting for setting in LIGHT if setting.partition("=")[0] in known]
    chosen = read_settings(encoder, "tiny", [*light, *settings], None, method)
    config = make_config("Dataset022_FLARE22", chosen)
    state = build_state(config, torch.device("cpu"))
    state.step = 40
    state.history = HISTORY

    save_state(path, state, config, pretraining_data(), adaptation_plan(PLANS, config))
    return path
