"""From the intensities and axes that nnU-Net's plans give to those that the encoder was pretrained on.

B batch, C channels, D H W voxels in nnU-Net's (z, y, x) order.
"""

import torch
from torch import Tensor, nn


class InputMap(nn.Module):
    """An affine map for every channel, a range for what the encoder may see, and axes to turn round.

    Everything comes from plain values that the plans keep, so nothing of it is in the state dict.
    For a CT channel the map turns nnU-Net's (HU - mean) / std into (HU - low) / (high - low) of the pretraining's window.
    Two views of it are in use. The encoder gets the mapped image clamped to the window, 0 to 1: it never saw anything
    else. The convolutional stem gets it unclamped: plans that clip at wider percentiles keep what lies outside
    the window, bone for one, and there is no reason to throw that away. Where the plans have the pretraining's window
    (alice-plan) the map is the identity.
    """

    def __init__(
        self,
        scale: list[float],
        shift: list[float],
        low: list[float | None],
        high: list[float | None],
        flip_axes: list[int],
    ):
        """scale, shift, low, high: one value for each channel, low and high None for no clamp.

        flip_axes: those of 0, 1, 2 (z, y, x) along which the plans' arrays run against the pretraining's.
        Raises ValueError for lists of different lengths or another axis.
        """
        super().__init__()
        if not len(scale) == len(shift) == len(low) == len(high):
            raise ValueError(
                f"scale, shift, low and high need one value per channel, got {scale}, {shift}, {low}, {high}"
            )
        if any(axis not in (0, 1, 2) for axis in flip_axes):
            raise ValueError(f"flip_axes must be among 0, 1, 2 (z, y, x), got {flip_axes}")
        self.dims = [axis + 2 for axis in flip_axes]
        bounds = (
            [-torch.inf if v is None else v for v in low],
            [torch.inf if v is None else v for v in high],
        )
        for name, values in zip(("scale", "shift", "low", "high"), (scale, shift, *bounds)):
            self.register_buffer(
                name, torch.tensor(values).float().view(1, -1, 1, 1, 1), persistent=False
            )

    def forward(self, image: Tensor) -> Tensor:
        """What the convolutional stem sees. (B, C, D, H, W) as the plans normalise it -> the same shape; 0 is the
        floor of the window."""
        return self.turn(image * self.scale + self.shift)

    def clamp(self, mapped: Tensor) -> Tensor:
        """What the encoder sees: forward's result within each channel's low and high."""
        return torch.minimum(torch.maximum(mapped, self.low), self.high)

    def turn(self, volume: Tensor) -> Tensor:
        """Flip the axes in question, (B, C, D, H, W); doing it twice changes nothing."""
        return volume.flip(self.dims) if self.dims else volume
