"""The augmentation of B.2: batchgeneratorsv2's transforms with nnU-Net's ranges.

Rotation and scaling are as in nnU-Net, flips along all axes.
"""

import math

from batchgeneratorsv2.helpers.scalar_type import RandomScalar
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.intensity.brightness import MultiplicativeBrightnessTransform
from batchgeneratorsv2.transforms.intensity.contrast import BGContrast, ContrastTransform
from batchgeneratorsv2.transforms.intensity.gaussian_noise import GaussianNoiseTransform
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
from batchgeneratorsv2.transforms.spatial.low_resolution import SimulateLowResolutionTransform
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.random import RandomTransform

LARGEST_ANGLE = math.radians(30)  # nnU-Net's for 3D
NOISE_VARIANCE = (0, 0.01)  # of volumes from 0 to 1; nnU-Net's 0.1 is for z-scores


def augmentation(size: tuple[int, int, int]) -> BasicTransform:
    """The transforms for volumes (C, *size) from 0 to 1."""
    factors: RandomScalar = BGContrast((0.75, 1.25))
    spatial = SpatialTransform(
        size,
        patch_center_dist_from_border=0,
        random_crop=False,
        p_rotation=0.2,
        rotation=(-LARGEST_ANGLE, LARGEST_ANGLE),
        p_scaling=0.2,
        scaling=(0.7, 1.4),
        p_synchronize_scaling_across_axes=1,
        bg_style_seg_sampling=False,
    )
    noise = GaussianNoiseTransform(NOISE_VARIANCE, p_per_channel=1, synchronize_channels=True)
    blur = GaussianBlurTransform((0.5, 1.0), p_per_channel=1)
    brightness = MultiplicativeBrightnessTransform(factors, False, p_per_channel=1)
    contrast = ContrastTransform(factors, True, False, p_per_channel=1)
    coarse = SimulateLowResolutionTransform((0.5, 1), False, True, (), p_per_channel=1)

    return ComposeTransforms(
        [
            spatial,
            MirrorTransform((0, 1, 2)),
            RandomTransform(noise, 0.1),
            RandomTransform(blur, 0.2),
            RandomTransform(brightness, 0.15),
            RandomTransform(contrast, 0.15),
            RandomTransform(coarse, 0.25),
        ]
    )
