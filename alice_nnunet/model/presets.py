"""The presets tiny, small and paper of each encoder: `PRESETS["nnformer"]["tiny"]`.

This module imports no torch: the commands list encoders and presets in their help.
"""

from dataclasses import dataclass
from typing import Any

Values = dict[str, Any]


@dataclass(frozen=True)
class Crops:
    """The crops that a preset trains on. They are the same for every encoder and for the matcher.

    Attributes:
        size: voxels of a crop (z, y, x). Also the patch size of new pretraining plans.
        spacing: mm (z, y, x). Used for new pretraining plans; existing plans are followed.
    """

    size: tuple[int, int, int]
    spacing: tuple[float, float, float]


@dataclass(frozen=True)
class Preset:
    """One encoder in one size. Each group holds only what its owner takes.

    Attributes:
        crops: size and spacing of the crops.
        encoder: arguments of the encoder's class, apart from `in_channels` and `crop_size`.
        method: fields of the method's settings that differ from its defaults, such as the
            decoder's size. Each method takes those that it has.
        run: fields of `PretrainConfig` that differ from its defaults.
        network: arguments of the segmentation network that fine-tuning builds around the encoder.
    """

    crops: Crops
    encoder: Values
    method: Values
    run: Values
    network: Values


CROPS = {
    "tiny": Crops(size=(32, 64, 64), spacing=(3.0, 3.0, 3.0)),
    "small": Crops(size=(64, 128, 128), spacing=(1.5, 0.76, 0.76)),
    "paper": Crops(size=(64, 192, 192), spacing=(1.5, 0.76, 0.76)),
}


def presets_with_spacing(spacing: tuple[float, float, float]) -> list[str]:
    """The presets of a spacing in mm, (z, y, x)."""
    return [name for name, crops in CROPS.items() if crops.spacing == tuple(spacing)]


# For CPUs: a run of minutes.
TINY_RUN = {
    "batch_size": 4,
    "lr": 3e-4,
    "lr_pairs": 4,
    "iterations": 2000,
    "ema": 0.99,
    "log_every": 20,
    "validate_every": 200,
    "probe_every": 200,
    "probe_pairs": 32,
    "save_every": 200,
}

# With 8 crops in a step, a teacher that is less sharp says the same of all crops, and prototypes
# that move become alike (docs/results/methods.md).
TINY_PROTOTYPES = {"teacher_temperature": 0.02, "rest_prototypes": 1.0}

SMALL_RUN = {"batch_size": 4, "lr": 1e-4, "lr_pairs": 4, "iterations": 20_000}
PAPER_RUN: Values = {}

# The decoders of swin and nnformer have one block: after stages of windows that is enough
# (GreenMIM).
#
# The tiny presets of swin and nnformer have three stages instead of four. Their units are half as
# long, so that hiding three quarters of a crop of (32, 64, 64) voxels leaves a choice: four stages
# would leave 4 units for swin and 8 for nnformer, three leave 32 and 64.
PRESETS: dict[str, dict[str, Preset]] = {
    "vit": {
        "tiny": Preset(
            crops=CROPS["tiny"],
            encoder={"width": 192, "depth": 4, "heads": 3, "token": (16, 16, 16)},
            method={
                "head_hidden": 512,
                "decoder_width": 192,
                "decoder_depth": 2,
                "decoder_heads": 6,
                **TINY_PROTOTYPES,
            },
            run=TINY_RUN,
            network={"feature_size": 8},  # a narrow decoder, for CPUs
        ),
        "small": Preset(
            crops=CROPS["small"],
            encoder={"width": 384, "depth": 8, "heads": 6, "token": (16, 16, 16)},
            method={
                "head_hidden": 1024,
                "decoder_width": 256,
                "decoder_depth": 2,
                "decoder_heads": 8,
                "anatomy_channels": 64,
            },
            run=SMALL_RUN,
            network={"feature_size": 16},
        ),
        "paper": Preset(
            crops=CROPS["paper"],
            encoder={"width": 768, "depth": 12, "heads": 12, "token": (16, 16, 16)},
            method={"anatomy_channels": 256},
            run=PAPER_RUN,
            network={"feature_size": 16},
        ),
    },
    "swin": {
        "tiny": Preset(
            crops=CROPS["tiny"],
            encoder={
                "embed_width": 16,
                "depths": (2, 2, 2),
                "heads": (1, 2, 4),
                "windows": ((4, 4, 4), (4, 4, 4), (4, 4, 4)),
            },
            method={
                "head_hidden": 512,
                "decoder_width": 192,
                "decoder_depth": 1,
                "decoder_heads": 6,
                **TINY_PROTOTYPES,
            },
            run=TINY_RUN,
            network={},  # its decoder is as wide as its encoder, here and below
        ),
        "small": Preset(
            crops=CROPS["small"],
            encoder={
                "embed_width": 24,
                "depths": (2, 2, 2, 2),
                "heads": (3, 6, 12, 24),
                "windows": ((7, 7, 7), (7, 7, 7), (7, 7, 7), (7, 7, 7)),
            },
            method={
                "head_hidden": 1024,
                "decoder_width": 256,
                "decoder_depth": 1,
                "decoder_heads": 8,
                "anatomy_channels": 64,
            },
            run=SMALL_RUN,
            network={},
        ),
        "paper": Preset(
            crops=CROPS["paper"],
            encoder={
                "embed_width": 48,
                "depths": (2, 2, 2, 2),
                "heads": (3, 6, 12, 24),
                "windows": ((7, 7, 7), (7, 7, 7), (7, 7, 7), (7, 7, 7)),
            },
            method={"decoder_depth": 1, "anatomy_channels": 256},
            run=PAPER_RUN,
            network={},
        ),
    },
    "nnformer": {
        "tiny": Preset(
            crops=CROPS["tiny"],
            encoder={
                "embed_width": 32,
                "depths": (2, 2, 2),
                "heads": (2, 4, 8),
                "windows": ((4, 4, 4), (4, 4, 4), (4, 4, 4)),
            },
            method={
                "head_hidden": 512,
                "decoder_width": 192,
                "decoder_depth": 1,
                "decoder_heads": 6,
                **TINY_PROTOTYPES,
            },
            run=TINY_RUN,
            network={},
        ),
        "small": Preset(
            crops=CROPS["small"],
            encoder={
                "embed_width": 96,
                "depths": (2, 2, 2, 2),
                "heads": (3, 6, 12, 24),
                "windows": ((4, 4, 4), (4, 4, 4), (8, 8, 8), (4, 4, 4)),
            },
            method={
                "head_hidden": 1024,
                "decoder_width": 256,
                "decoder_depth": 1,
                "decoder_heads": 8,
                "anatomy_channels": 64,
            },
            run=SMALL_RUN,
            network={},
        ),
        "paper": Preset(
            crops=CROPS["paper"],
            encoder={
                "embed_width": 192,
                "depths": (2, 2, 2, 2),
                "heads": (6, 12, 24, 48),
                "windows": ((4, 4, 4), (4, 4, 4), (8, 8, 8), (4, 4, 4)),
            },
            method={"decoder_depth": 1, "anatomy_channels": 256},
            run=PAPER_RUN,
            network={},
        ),
    },
}
