"""From nnU-Net's intensities and axes to those of the pretraining.

Shapes: B crops, C channels, D H W voxels in (z, y, x) order.
"""

import torch
from torch import Tensor, nn


class InputMap(nn.Module):
    """An affine map of each channel, the range that the encoder may see, and axes to flip.

    Everything comes from plain values in the plans, so the state dict holds none of it.

    For a CT channel the map turns nnU-Net's (HU - mean) / std into (HU - low) / (high - low) of
    the pretraining's window. The mapped image is used in two ways. The encoder gets it clamped to
    the window, 0 to 1, because it never saw anything else. The convolutional stem gets it
    unclamped: plans that clip at wider percentiles keep what lies outside the window, bone for
    example, and the stem can use it. If the plans have the pretraining's window (alice-plan), the
    map is the identity.

    Args:
        scale: factor of each channel.
        shift: what is added to each channel after that.
        low: lowest value of each channel for the encoder, None for no limit.
        high: highest value of each channel for the encoder, None for no limit.
        flip_axes: axes (0, 1, 2 for z, y, x) along which the plans' arrays run against those of
            the pretraining.

    Raises:
        ValueError: the lists have different lengths, or there is another axis.
    """

    scale: Tensor
    shift: Tensor
    low: Tensor
    high: Tensor

    def __init__(
        self,
        scale: list[float],
        shift: list[float],
        low: list[float | None],
        high: list[float | None],
        flip_axes: list[int],
    ):
        super().__init__()
        if not len(scale) == len(shift) == len(low) == len(high):
            raise ValueError(
                "scale, shift, low and high need one value per channel, "
                f"got {scale}, {shift}, {low}, {high}"
            )
        if any(axis not in (0, 1, 2) for axis in flip_axes):
            raise ValueError(f"flip_axes must be among 0, 1, 2 (z, y, x), got {flip_axes}")

        self.dims = [axis + 2 for axis in flip_axes]
        self.keep_values("scale", scale)
        self.keep_values("shift", shift)
        self.keep_values("low", [-torch.inf if value is None else value for value in low])
        self.keep_values("high", [torch.inf if value is None else value for value in high])

    def keep_values(self, name: str, values: list[float]) -> None:
        """Keep one value for each channel as a buffer (1, C, 1, 1, 1), not in the state dict."""
        buffer = torch.tensor(values).float().view(1, -1, 1, 1, 1)
        self.register_buffer(name, buffer, persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        """Map an image for the convolutional stem.

        Args:
            image: (B, C, D, H, W), as the plans normalise it.

        Returns:
            The same shape. 0 is the floor of the window.
        """
        return self.turn(image * self.scale + self.shift)

    def clamp(self, mapped: Tensor) -> Tensor:
        """Clamp the result of `forward` to each channel's low and high, for the encoder."""
        return torch.minimum(torch.maximum(mapped, self.low), self.high)

    def turn(self, volume: Tensor) -> Tensor:
        """Flip the axes in question, (B, C, D, H, W). Twice is the identity."""
        return volume.flip(self.dims) if self.dims else volume
