"""The presets tiny, small and paper of the matcher: its network and its training.

This module imports no torch: alice-embed lists the presets in its help.
"""

from dataclasses import dataclass
from typing import Any

FINE_STRIDE = (2, 2, 2)  # voxels (z, y, x) from one fine vector to the next
COARSE_STRIDE = (4, 16, 16)


@dataclass(frozen=True)
class Preset:
    """The matcher in one size.

    Attributes:
        network: arguments of `SamNet`. `ContextNet` takes `channels` alone.
        run: fields of `EmbedConfig` that differ from its defaults.
    """

    network: dict[str, Any]
    run: dict[str, Any]


PRESETS = {
    "tiny": Preset(
        network={"widths": (8, 16, 32, 64), "channels": 16, "stem": (3, 5, 5)},
        run={
            "voxel": 5.0,
            "patch_size": (24, 64, 64),
            "crop_size": (32, 80, 80),
            "step": 10.0,
            "batch_size": 4,
            "points": 512,
            "hardest": 200,
            "ignore_fine": 16.0,
            "features": "context",
            "iterations": 40,
            "log_every": 10,
            "validate_every": 20,
            "save_every": 10,
        },
    ),
    "small": Preset(
        network={"widths": (32, 64, 128, 256), "channels": 32, "stem": (3, 7, 7)},
        run={"voxel": 3.0, "batch_size": 4, "iterations": 10_000, "step": 6.0},
    ),
    # SAM's network, which the released weights fit.
    "paper": Preset(
        network={"widths": (64, 128, 256, 512), "channels": 128, "stem": (3, 7, 7)},
        run={},
    ),
}
