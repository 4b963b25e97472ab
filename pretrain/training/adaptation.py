"""The checkpoint's adaptation_plan, in the schema of nnssl's AdaptationPlan."""

from dataclasses import dataclass

from alice_nnunet.geometry import Triple
from alice_nnunet.pretrain.training.config import PretrainConfig

PLANS_KEYS = (
    "dataset_name",
    "plans_name",
    "original_median_spacing_after_transp",
    "image_reader_writer",
    "transpose_forward",
    "transpose_backward",
)
CONFIGURATION_KEYS = (
    "data_identifier",
    "preprocessor_name",
    "normalization_schemes",
    "use_mask_for_norm",
    "resampling_fn_data",
    "resampling_fn_data_kwargs",
    "spacing",
    "patch_size",
)


@dataclass(frozen=True)
class EncoderParts:
    """Where an encoder has what nnssl asks for.

    Attributes:
        path: Class of the encoder.
        encoder: Name of its blocks.
        in_proj: Name of the stem's first convolution.
        positions: Name of the learned position embedding, or None.
        patch: Voxels (z, y, x) of a fine-tuning patch (Table 8).
    """

    path: str
    encoder: str
    in_proj: str
    positions: str | None
    patch: Triple


ENCODERS = {
    "vit": EncoderParts(
        "alice_nnunet.model.vit.ViT", "blocks", "patch_embed", "positions", (96, 96, 96)
    ),
    "swin": EncoderParts(
        "alice_nnunet.model.swin.Swin", "stages", "patch_embed", None, (96, 96, 96)
    ),
    "nnformer": EncoderParts(
        "alice_nnunet.model.nnformer.NnFormer",
        "stages",
        "patch_embed.convolutions.0",
        None,
        (96, 128, 128),
    ),
}


def adaptation_plan(plans: dict, config: PretrainConfig) -> dict:
    """What another tool needs to fine-tune network_weights.

    The encoder's arguments are not in it but in the checkpoint's config: nnssl takes arch_kwargs
    for those of its own CNNs.

    Args:
        plans: The AlicePretrainPlans.
        config: Settings of the pretraining.
    """
    parts = ENCODERS[config.encoder]
    patch = parts.patch if config.preset == "paper" else config.encoder_arguments["crop_size"]

    architecture = {
        "arch_class_name": parts.path,
        "arch_kwargs": None,
        "arch_kwargs_requiring_import": None,
    }
    configurations = {
        name: nnssl_configuration(configuration)
        for name, configuration in plans["configurations"].items()
    }
    pretrain_plan = {
        **{key: plans[key] for key in PLANS_KEYS},
        "configurations": configurations,
        "experiment_planner_used": plans["experiment_planner_used"],
    }
    return {
        "architecture_plans": architecture,
        "pretrain_plan": pretrain_plan,
        "pretrain_num_input_channels": config.encoder_arguments["in_channels"],
        "recommended_downstream_patchsize": list(patch),
        "key_to_encoder": parts.encoder,
        "key_to_stem": "patch_embed",
        "keys_to_in_proj": [parts.in_proj],
        "key_to_lpe": parts.positions,
    }


def nnssl_configuration(configuration: dict) -> dict:
    """nnU-Net's configuration with nnssl's additional keys.

    There are no masks, and the spacing is given, not found by one of nnssl's rules.
    """
    return {
        **{key: configuration[key] for key in CONFIGURATION_KEYS},
        "spacing_style": "noresample",
        "resampling_fn_mask": configuration["resampling_fn_seg"],
        "resampling_fn_mask_kwargs": configuration["resampling_fn_seg_kwargs"],
    }
