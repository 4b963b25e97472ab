"""Plans that match a pretraining, derived from nnU-Net's own. Plans are plain data.

Sizes in voxels and spacings in mm, as lists in nnU-Net's (z, y, x) order.
"""

import numpy as np

from alice_nnunet.finetuning.block import AliceBlock
from alice_nnunet.finetuning.channels import match_channels
from alice_nnunet.finetuning.nnunet_plans import configuration_of
from alice_nnunet.finetuning.pretrained import EncoderOrigin
from alice_nnunet.names import CONFIGURATION
from alice_nnunet.planning.choices import PlanChoices
from alice_nnunet.planning.labeled_dataset import LabeledDataset

# Written into users' plans: these paths must stay importable
NETWORK_CLASS = {
    "vit": "alice_nnunet.networks.unetr.UNETR",
    "swin": "alice_nnunet.networks.swin_unetr.SwinUNETR",
    "nnformer": "alice_nnunet.networks.nnformer.NnFormerNet",
}
STRIDES = [[1, 1, 1]] + 4 * [[2, 2, 2]]  # of a decoder; nnU-Net wants them in all plans


def matched_plans(
    dataset: LabeledDataset,
    name: str,
    block: AliceBlock,
    statistics: dict[str, dict],
    choices: PlanChoices,
) -> dict:
    """Plans for fine-tuning an encoder: with its window, orientation and network.

    Args:
        dataset: to fine-tune on, with nnU-Net's own plans.
        name: of the new plans.
        block: the alice block.
        statistics: intensity statistics of each channel, see matched_statistics.
        choices: spacing, patch and batch.
    """
    configuration = {
        **configuration_of(dataset.plans, CONFIGURATION),
        "data_identifier": f"{name}_{CONFIGURATION}",
        "batch_size": choices.batch.value,
        "patch_size": choices.patch.value,
        "median_image_size_in_voxels": choices.median_size.tolist(),
        "spacing": choices.spacing.value,
        "architecture": {
            "network_class_name": NETWORK_CLASS[block.origin.name],
            "arch_kwargs": {
                "encoder_arguments": block.origin.arguments,
                "input_map": block.input,
                **block.network_arguments,
                "strides": STRIDES,
            },
            "_kw_requires_import": [],
        },
    }

    median_spacing = np.median(dataset.spacings, 0)
    median_shape = np.median(dataset.sizes, 0).round().astype(int)
    return {
        **dataset.plans,
        "plans_name": name,
        "original_median_spacing_after_transp": median_spacing.tolist(),
        "original_median_shape_after_transp": median_shape.tolist(),
        "image_reader_writer": block.origin.data["reader"],
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {CONFIGURATION: configuration},
        "foreground_intensity_properties_per_channel": statistics,
        "alice": block.as_entries(),
    }


def matched_statistics(
    origin: EncoderOrigin, schemes: list[str], statistics: dict[str, dict]
) -> dict[str, dict]:
    """Intensity statistics with which nnU-Net shows each channel as the pretraining did.

    nnU-Net's CTNormalization clips to the percentiles and applies (HU - mean) / std: with the
    window as both, it clips to the window and maps it to 0..1.

    Args:
        origin: of the encoder.
        schemes: nnU-Net's normalization of each channel.
        statistics: of nnU-Net's own plans; channels without a window keep theirs.
    """
    matched = dict(statistics)
    for channel in match_channels(origin, schemes):
        if channel.window is None:
            continue

        low, high = channel.window
        key = str(channel.index)
        matched[key] = {
            **matched[key],
            "mean": low,
            "std": high - low,
            "percentile_00_5": low,
            "percentile_99_5": high,
        }
    return matched
