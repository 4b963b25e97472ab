"""Segmentation networks in bf16 on CPUs that have it. On a GPU nnU-Net decides."""

import torch
from torch import Tensor, nn


class SegmentationNetwork(nn.Module):
    """A network that can compute in bf16 on a CPU. A subclass writes `segment`.

    Attributes:
        half_on_cpu: whether images on a CPU are segmented under autocast to bf16. Sums within norms
            are in fp32, and so are weights and logits, and with these the loss.
    """

    half_on_cpu = False

    def forward(self, image: Tensor) -> Tensor | list[Tensor]:
        """Segment an image (B, C, D, H, W); the result is that of `segment`, in fp32 on a CPU."""
        if not (self.half_on_cpu and image.device.type == "cpu"):
            return self.segment(image)

        with torch.autocast("cpu", torch.bfloat16):
            logits = self.segment(image)
        return [level.float() for level in logits] if isinstance(logits, list) else logits.float()

    def segment(self, image: Tensor) -> Tensor | list[Tensor]:
        """Logits (B, num_classes, D, H, W), or a list of them with deep supervision."""
        raise NotImplementedError
