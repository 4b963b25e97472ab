"""Vectors without a deep network, from the mean brightness of a point's surroundings.

Near and far surroundings are averaged over boxes, and the linear map of these means that tells
places apart best makes the vector. The map is computed in closed form, not by gradient descent:
minutes on a CPU, and enough for ten people.

B batch, D H W voxels in (z, y, x) order, F features, C channels, K points. A node is 2 x 2 x 2
voxels, as a fine vector of SAM.
"""

import itertools
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alice_nnunet.geometry import Triple
from alice_nnunet.matcher.presets import FINE_STRIDE


@dataclass(frozen=True)
class Scale:
    """3 x 3 x 3 boxes around a node that are averaged.

    Attributes:
        edge: of a box in nodes.
        reach: nodes from the middle of one box to that of the next.
    """

    edge: int
    reach: int


SCALES = (Scale(1, 2), Scale(3, 4), Scale(5, 8))
BOXES = 27  # of a scale
FINE = slice(0, 2 * BOXES)  # features of the two nearer scales
COARSE = slice(BOXES, 3 * BOXES)  # features of the two further scales

RIDGE = 1e-3  # of the mean variance, added to each variance
SMALLEST = 1e-12  # added to each variance, so that constant features can be inverted


class Discriminant(nn.Module):
    """Fisher's linear discriminant, (B, F, ...) -> (B, C, ...), in closed form.

    After it the same point in two patches is nearest to itself, relative to how far apart all
    points are. The sums that it is computed from are kept; observe adds to them.

    Args:
        features: F.
        channels: C.
    """

    count: Tensor
    sum: Tensor
    total: Tensor
    within: Tensor

    def __init__(self, features: int, channels: int):
        super().__init__()

        def zeros(*size: int) -> Tensor:
            return torch.zeros(size, dtype=torch.float64)

        self.register_buffer("count", zeros())
        self.register_buffer("sum", zeros(features))
        self.register_buffer("total", zeros(features, features))  # sum of products of features
        self.register_buffer("within", zeros(features, features))  # of products of differences
        self.mean = nn.Parameter(torch.zeros(features), requires_grad=False)
        self.weight = nn.Parameter(torch.eye(features)[:channels], requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """Vectors of length 1."""
        dimensions = x.ndim - 2
        centred = x - self.mean.view(1, -1, *[1] * dimensions)
        return F.normalize(torch.einsum("cf,bf...->bc...", self.weight, centred), dim=1)

    @torch.no_grad()
    def observe(self, first: Tensor, second: Tensor) -> None:
        """Learn from the features of the same points in two patches, (K, F) each."""
        first = first.double()
        second = second.double()
        both = torch.cat([first, second])
        apart = first - second

        self.count += len(both)
        self.sum += both.sum(0)
        self.total += both.T @ both
        self.within += apart.T @ apart
        if self.count > 2 * len(self.sum):
            self.solve()

    def solve(self) -> None:
        """Set the map to the C most discriminative directions.

        They are the generalised eigenvectors w of T w = lambda W w with the largest lambda; T is
        the covariance of all points, W that of the differences of the same point in two patches.
        """
        mean = self.sum / self.count
        total = self.total / self.count - torch.outer(mean, mean)
        within = self.within / self.count
        identity = torch.eye(len(mean), dtype=torch.float64, device=mean.device)
        within += RIDGE * within.trace() / len(within) * identity + SMALLEST * identity

        # W = L L^T turns it into an ordinary eigenproblem, of L^-1 T L^-T.
        lower = torch.linalg.cholesky(within)
        whitened = torch.linalg.solve_triangular(lower, total, upper=False)
        whitened = torch.linalg.solve_triangular(lower, whitened.T, upper=False)
        symmetric = (whitened + whitened.T) / 2
        descending = torch.linalg.eigh(symmetric).eigenvectors.flip(1)
        vectors = descending[:, : len(self.weight)]

        self.mean.copy_(mean)
        self.weight.copy_(torch.linalg.solve_triangular(lower.T, vectors, upper=True).T)


class ContextNet(nn.Module):
    """Discriminants in the place of SamNet.

    The fine vector is made from the near surroundings, the coarse one from the far ones, both on
    the fine grid.

    Args:
        channels: C, of a vector.
    """

    stride: Triple = (1, 1, 1)  # any size

    def __init__(self, channels: int):
        super().__init__()
        self.fine = Discriminant(FINE.stop - FINE.start, channels)
        self.coarse = Discriminant(COARSE.stop - COARSE.start, channels)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Compute vectors of length 1.

        Args:
            image: (B, 1, D, H, W), 0 to 1.

        Returns:
            fine and coarse: (B, C, D/2, H/2, W/2) each, sizes rounded up.
        """
        features = contexts(image)
        return self.fine(features[:, FINE]), self.coarse(features[:, COARSE])

    def observe(self, first: Tensor, second: Tensor) -> None:
        """Learn from the contexts of the same points in two patches, (K, 81) each."""
        self.fine.observe(first[:, FINE], second[:, FINE])
        self.coarse.observe(first[:, COARSE], second[:, COARSE])


def contexts(image: Tensor) -> Tensor:
    """Means of the boxes around each node.

    Around the image its edge is repeated: a scan ends, the body does not.

    Args:
        image: (B, 1, D, H, W).

    Returns:
        (B, 81, D/2, H/2, W/2), sizes rounded up.
    """
    odd_z, odd_y, odd_x = (n % 2 for n in image.shape[2:])
    even = F.pad(image, (0, odd_x, 0, odd_y, 0, odd_z), mode="replicate")
    nodes = F.avg_pool3d(even, FINE_STRIDE)
    z, y, x = nodes.shape[2:]

    maps = []
    for scale in SCALES:
        margin = scale.reach + scale.edge // 2
        around = F.pad(nodes, (margin,) * 6, mode="replicate")
        means = F.avg_pool3d(around, scale.edge, stride=1)
        shifts = (0, scale.reach, 2 * scale.reach)
        for i, j, k in itertools.product(shifts, repeat=3):
            maps.append(means[:, 0, i : i + z, j : j + y, k : k + x])
    return torch.stack(maps, 1)
