"""A recipe's augmentation: nnU-Net's own transforms and ranges with other probabilities.

C channels, D H W voxels in nnU-Net's (z, y, x) order.
"""

import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform, ImageOnlyTransform
from batchgeneratorsv2.transforms.intensity.brightness import MultiplicativeBrightnessTransform
from batchgeneratorsv2.transforms.intensity.contrast import ContrastTransform
from batchgeneratorsv2.transforms.intensity.gamma import GammaTransform
from batchgeneratorsv2.transforms.intensity.gaussian_noise import GaussianNoiseTransform
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
from batchgeneratorsv2.transforms.spatial.low_resolution import SimulateLowResolutionTransform
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.nnunet_masking import MaskImageTransform
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from batchgeneratorsv2.transforms.utils.remove_label import RemoveLabelTansform
from torch import Tensor

LARGEST_SHIFT = 0.1  # of the pretraining's window (MONAI's recipes for UNETR and Swin UNETR)

# Names that recipes have for nnU-Net's intensity transforms; see name_of for gamma
NAMES = {
    GaussianNoiseTransform: "noise",
    GaussianBlurTransform: "blur",
    MultiplicativeBrightnessTransform: "brightness",
    ContrastTransform: "contrast",
    SimulateLowResolutionTransform: "low_resolution",
}


class IntensityShift(ImageOnlyTransform):
    """Add one number to a whole channel, uniform between -largest and largest."""

    def __init__(self, largest: list[float]):
        """largest: for each channel, in the units of the image."""
        super().__init__()
        self.largest = torch.tensor(largest)

    def get_parameters(self, **data_dict) -> dict:
        return {"shift": (2 * torch.rand(len(self.largest)) - 1) * self.largest}

    def _apply_to_image(self, img: Tensor, **params) -> Tensor:
        """(C, D, H, W) -> the same shape."""
        return img + params["shift"].view(-1, 1, 1, 1)


def with_probabilities(
    pipeline: ComposeTransforms, probabilities: dict[str, float], window_scale: list[float]
) -> ComposeTransforms:
    """Give nnU-Net's training transforms the probabilities of a recipe.

    Args:
        pipeline: from nnUNetTrainer.get_training_transforms. What is not an augmentation stays.
        probabilities: of the recipe.
        window_scale: for each channel, the factor from a difference of the plans' intensities to
            one of the pretraining's window (InputMap's scale).

    Raises:
        RuntimeError: nnU-Net augments with a transform that recipes do not name, as a later
            version may.
    """
    transforms = []
    for transform in pipeline.transforms:
        if isinstance(transform, SpatialTransform):
            transform.p_rotation = probabilities["rotation"]
            transform.p_scaling = probabilities["scaling"]

        elif isinstance(transform, MirrorTransform):
            transform = RandomTransform(transform, probabilities["mirroring"])

        elif isinstance(transform, RandomTransform):
            name = name_of(transform.transform)
            if name is None:
                raise RuntimeError(
                    f"nnU-Net augments with {type(transform.transform).__name__}, which recipes "
                    f"do not name yet"
                )
            transform.apply_probability = probabilities[name]

        transforms.append(transform)

    largest = [LARGEST_SHIFT / scale for scale in window_scale]
    shift = RandomTransform(IntensityShift(largest), probabilities["shift"])

    # before what follows nnU-Net's augmentations: masking, then changes of the labels
    end = next(
        index
        for index, transform in enumerate(transforms)
        if isinstance(transform, (MaskImageTransform, RemoveLabelTansform))
    )
    return ComposeTransforms([*transforms[:end], shift, *transforms[end:]])


def name_of(transform: BasicTransform) -> str | None:
    """The name that recipes have for one of nnU-Net's intensity transforms."""
    if isinstance(transform, GammaTransform):
        return "inverted_gamma" if transform.p_invert_image else "gamma"
    return NAMES.get(type(transform))
