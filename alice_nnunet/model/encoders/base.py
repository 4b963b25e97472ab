"""What every encoder has, whatever is inside."""

from torch import Tensor, nn

from alice_nnunet.geometry import Triple


class Encoder(nn.Module):
    """An encoder that can be pretrained and that a segmentation network can be built around.

    Shapes: B crops, C channels, D H W voxels in (z, y, x) order, N units of a crop, V visible
    units.

    Attributes:
        unit: voxels that are hidden or shown together (z, y, x). Crops are whole numbers of units.
        grid: units of the pretraining crop (z, y, x).
        width: width E of the result.
    """

    unit: Triple
    grid: Triple
    width: int

    def forward(self, crop: Tensor, keep: Tensor | None = None) -> Tensor:
        """Encode visible units only (Alice, Sec. 3.1). Hidden voxels change nothing.

        Args:
            crop: (B, C, D, H, W).
            keep: (B, V) indices of the visible units, z slowest, or None for all.

        Returns:
            (B, V, E), or (B, N, E) without keep.
        """
        raise NotImplementedError

    def features(self, crop: Tensor) -> list[Tensor]:
        """Features of an intact crop for the decoder of a segmentation network, finest first.

        Args:
            crop: (B, C, D, H, W).

        Returns:
            Volumes (B, channels, d, h, w).
        """
        raise NotImplementedError
