"""A recipe's augmentation, out of nnU-Net's own pipeline: its transforms and ranges stay, their probabilities change.

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
NAMES = {
    GaussianNoiseTransform: "noise",
    GaussianBlurTransform: "blur",
    MultiplicativeBrightnessTransform: "brightness",
    ContrastTransform: "contrast",
    SimulateLowResolutionTransform: "low_resolution",
}


class IntensityShift(ImageOnlyTransform):
    """Add one number to a whole channel, uniform between -largest and largest.

    largest: for each channel, in the units of the image.
    """

    def __init__(self, largest: list[float]):
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
    """nnU-Net's training transforms with a recipe's probabilities; what is no augmentation stays as it is.

    pipeline: of nnUNetTrainer.get_training_transforms. probabilities: of the recipe. window_scale: for each channel, what
    turns a difference of the plans' intensities into one of the pretraining's window (InputMap's scale).
    Raises RuntimeError for a transform that it does not know, so that no version of nnU-Net adds one unseen.
    """
    transforms = []
    for transform in pipeline.transforms:
        if isinstance(transform, SpatialTransform):
            transform.p_rotation, transform.p_scaling = (
                probabilities["rotation"],
                probabilities["scaling"],
            )
        elif isinstance(transform, RandomTransform) and (name := name_of(transform.transform)):
            transform.apply_probability = probabilities[name]
        elif isinstance(transform, MirrorTransform):
            transform = RandomTransform(transform, probabilities["mirroring"])
        elif isinstance(transform, RandomTransform):
            raise RuntimeError(
                f"nnU-Net augments with {type(transform.transform).__name__}, which recipes do not name yet"
            )
        transforms.append(transform)
    shift = RandomTransform(
        IntensityShift([LARGEST_SHIFT / scale for scale in window_scale]), probabilities["shift"]
    )
    end = next(
        i
        for i, transform in enumerate(transforms)
        if isinstance(transform, (MaskImageTransform, RemoveLabelTansform))
    )
    return ComposeTransforms([*transforms[:end], shift, *transforms[end:]])


def name_of(transform: BasicTransform) -> str | None:
    """The recipe's name of one of nnU-Net's intensity transforms."""
    if isinstance(transform, GammaTransform):
        return "inverted_gamma" if transform.p_invert_image else "gamma"
    return NAMES.get(type(transform))
