"""The checkpoint's nnssl_adaptation_plan, in the schema of nnssl's AdaptationPlan."""

from dataclasses import dataclass

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
class EncoderKeys:
    """Where an encoder has what nnssl asks for. Names are those of its modules and tensors.

    Attributes:
        class_path: Of the encoder.
        encoder: The module of its blocks.
        input_projection: The layer that takes the image.
        position_embedding: The learned one, None where there is none.
        patch_size: Voxels (z, y, x) of a fine-tuning after preset paper (Table 8).
    """

    class_path: str
    encoder: str
    input_projection: str
    position_embedding: str | None
    patch_size: tuple[int, int, int]


ENCODERS = {
    "vit": EncoderKeys(
        class_path="alice_nnunet.model.vit.ViT",
        encoder="blocks",
        input_projection="patch_embed",
        position_embedding="positions",
        patch_size=(96, 96, 96),
    ),
    "swin": EncoderKeys(
        class_path="alice_nnunet.model.swin.Swin",
        encoder="stages",
        input_projection="patch_embed",
        position_embedding=None,
        patch_size=(96, 96, 96),
    ),
    "nnformer": EncoderKeys(
        class_path="alice_nnunet.model.nnformer.NnFormer",
        encoder="stages",
        input_projection="patch_embed.convolutions.0",
        position_embedding=None,
        patch_size=(96, 128, 128),
    ),
}


def adaptation_plan(plans: dict, config: PretrainConfig) -> dict:
    """What another tool needs to fine-tune network_weights.

    The encoder's arguments are not in it but in the checkpoint's config: nnssl takes arch_kwargs
    for those of its own CNNs.

    Args:
        plans: The AlicePretrainPlans.
        config: Of the run.
    """
    keys = ENCODERS[config.encoder]

    if config.preset == "paper":
        patch_size = list(keys.patch_size)
    else:
        patch_size = list(config.encoder_arguments["crop_size"])

    pretrain_plan = {key: plans[key] for key in PLANS_KEYS}
    pretrain_plan["configurations"] = {
        name: nnssl_configuration(configuration)
        for name, configuration in plans["configurations"].items()
    }
    pretrain_plan["experiment_planner_used"] = plans["experiment_planner_used"]

    return {
        "architecture_plans": {
            "arch_class_name": keys.class_path,
            "arch_kwargs": None,
            "arch_kwargs_requiring_import": None,
        },
        "pretrain_plan": pretrain_plan,
        "pretrain_num_input_channels": config.encoder_arguments["in_channels"],
        "recommended_downstream_patchsize": patch_size,
        "key_to_encoder": keys.encoder,
        "key_to_stem": "patch_embed",
        "keys_to_in_proj": [keys.input_projection],
        "key_to_lpe": keys.position_embedding,
    }


def nnssl_configuration(configuration: dict) -> dict:
    """nnU-Net's configuration with nnssl's additional keys.

    There are no masks. The spacing follows none of nnssl's rules: it is given.
    """
    return {
        **{key: configuration[key] for key in CONFIGURATION_KEYS},
        "spacing_style": "noresample",
        "resampling_fn_mask": configuration["resampling_fn_seg"],
        "resampling_fn_mask_kwargs": configuration["resampling_fn_seg_kwargs"],
    }
