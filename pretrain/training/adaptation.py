"""The checkpoint's nnssl_adaptation_plan, in the schema of nnssl's AdaptationPlan."""

from alice_nnunet.pretrain.training.config import PretrainConfig

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


# Where each encoder has what nnssl asks for: class, encoder, stem, learned position embedding, and the patch of Table 8.
ENCODERS = {
    "vit": {
        "class": "alice_nnunet.model.vit.ViT",
        "encoder": "blocks",
        "in_proj": "patch_embed",
        "lpe": "positions",
        "patch": [96, 96, 96],
    },
    "swin": {
        "class": "alice_nnunet.model.swin.Swin",
        "encoder": "stages",
        "in_proj": "patch_embed",
        "lpe": None,
        "patch": [96, 96, 96],
    },
    "nnformer": {
        "class": "alice_nnunet.model.nnformer.NnFormer",
        "encoder": "stages",
        "in_proj": "patch_embed.convolutions.0",
        "lpe": None,
        "patch": [96, 128, 128],
    },
}


def adaptation_plan(plans: dict, config: PretrainConfig) -> dict:
    """What another tool needs to fine-tune network_weights. plans: the AlicePretrainPlans.

    The encoder's arguments are not in it but in the checkpoint's config: nnssl takes arch_kwargs for those of its own CNNs.
    """
    encoder = ENCODERS[config.encoder]
    return {
        "architecture_plans": {
            "arch_class_name": encoder["class"],
            "arch_kwargs": None,
            "arch_kwargs_requiring_import": None,
        },
        "pretrain_plan": {
            **{
                key: plans[key]
                for key in (
                    "dataset_name",
                    "plans_name",
                    "original_median_spacing_after_transp",
                    "image_reader_writer",
                    "transpose_forward",
                    "transpose_backward",
                )
            },
            "configurations": {
                name: nnssl_configuration(configuration)
                for name, configuration in plans["configurations"].items()
            },
            "experiment_planner_used": plans["experiment_planner_used"],
        },
        "pretrain_num_input_channels": config.encoder_arguments["in_channels"],
        "recommended_downstream_patchsize": encoder["patch"]
        if config.preset == "paper"
        else list(config.encoder_arguments["crop_size"]),
        "key_to_encoder": encoder["encoder"],
        "key_to_stem": "patch_embed",
        "keys_to_in_proj": [encoder["in_proj"]],
        "key_to_lpe": encoder["lpe"],
    }


def nnssl_configuration(configuration: dict) -> dict:
    """nnU-Net's configuration with nnssl's additional keys. There are no masks; spacing is neither of nnssl's rules but given."""
    return {
        **{key: configuration[key] for key in CONFIGURATION_KEYS},
        "spacing_style": "noresample",
        "resampling_fn_mask": configuration["resampling_fn_seg"],
        "resampling_fn_mask_kwargs": configuration["resampling_fn_seg_kwargs"],
    }
