"""Vectors without a deep network: the mean brightness of a point's surroundings, near and far, and the linear map of them that
tells places apart best. It is computed, not descended to: minutes on a CPU, and enough for ten people.

B batch, D H W voxels in (z, y, x) order, F features, K points. A node is 2 x 2 x 2 voxels, as a fine vector of SAM.
"""

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alice_nnunet.geometry import Triple
from alice_nnunet.matcher.presets import FINE_STRIDE

SCALES = (
    (1, 2),
    (3, 4),
    (5, 8),
)  # nodes: edge of the boxes that are averaged, and from one to the next; 3 x 3 x 3 boxes each
FINE, COARSE = (
    slice(0, 54),
    slice(27, 81),
)  # features of the two nearer and of the two further scales
RIDGE = 1e-3  # of the mean variance, added to each


class Discriminant(nn.Module):
    """The linear map (B, F, ...) -> (B, channels, ...) after which the same point in two patches is nearest to itself, as
    measured by how far apart all points are: Fisher's discriminant, in closed form. It is updated by observe."""

    def __init__(self, features: int, channels: int):
        super().__init__()
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        self.register_buffer("sum", torch.zeros(features, dtype=torch.float64))
        self.register_buffer(
            "total", torch.zeros(features, features, dtype=torch.float64)
        )  # of the products of features
        self.register_buffer(
            "within", torch.zeros(features, features, dtype=torch.float64)
        )  # of the products of differences
        self.mean = nn.Parameter(torch.zeros(features), requires_grad=False)
        self.weight = nn.Parameter(torch.eye(features)[:channels], requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """Vectors of length 1."""
        centred = x - self.mean.view(1, -1, *[1] * (x.ndim - 2))
        return F.normalize(torch.einsum("cf,bf...->bc...", self.weight, centred), dim=1)

    @torch.no_grad()
    def observe(self, first: Tensor, second: Tensor) -> None:
        """Learn from the same points in two patches, (K, F) each."""
        first, second = first.double(), second.double()
        both, apart = torch.cat([first, second]), first - second
        self.count += len(both)
        self.sum += both.sum(0)
        self.total += both.T @ both
        self.within += apart.T @ apart
        if self.count > 2 * len(self.sum):
            self.solve()

    def solve(self) -> None:
        """Generalised eigenvectors of the total and the within covariance, the most telling ones first."""
        mean, floor = (
            self.sum / self.count,
            torch.eye(len(self.sum), dtype=torch.float64, device=self.sum.device),
        )
        within = self.within / self.count
        within += RIDGE * within.trace() / len(within) * floor + 1e-12 * floor
        lower = torch.linalg.cholesky(within)
        whitened = torch.linalg.solve_triangular(
            lower, self.total / self.count - torch.outer(mean, mean), upper=False
        )
        whitened = torch.linalg.solve_triangular(lower, whitened.T, upper=False)
        vectors = torch.linalg.eigh((whitened + whitened.T) / 2).eigenvectors.flip(1)[
            :, : len(self.weight)
        ]
        self.mean.copy_(mean)
        self.weight.copy_(torch.linalg.solve_triangular(lower.T, vectors, upper=True).T)


class ContextNet(nn.Module):
    """Takes AnatomyNet's place: the fine vector is that of the near surroundings, the coarse one that of the far ones, both on
    the fine grid. channels: C, of a vector."""

    stride: Triple = (1, 1, 1)  # any size

    def __init__(self, channels: int):
        super().__init__()
        self.fine, self.coarse = (
            Discriminant(part.stop - part.start, channels) for part in (FINE, COARSE)
        )

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors of length 1. image: (B, 1, D, H, W), 0 to 1. Returns fine and coarse (B, C, D/2, H/2, W/2), rounded up."""
        features = contexts(image)
        return self.fine(features[:, FINE]), self.coarse(features[:, COARSE])

    def observe(self, first: Tensor, second: Tensor) -> None:
        """Learn from the contexts of the same points in two patches, (K, 81) each."""
        self.fine.observe(first[:, FINE], second[:, FINE])
        self.coarse.observe(first[:, COARSE], second[:, COARSE])


def contexts(image: Tensor) -> Tensor:
    """Means of the boxes around each node, (B, 1, D, H, W) -> (B, 81, D/2, H/2, W/2), sizes rounded up. Around the image its
    edge goes on: a scan ends, the body does not."""
    odd = [n % 2 for n in image.shape[:1:-1]]
    nodes = F.avg_pool3d(
        F.pad(image, (0, odd[0], 0, odd[1], 0, odd[2]), mode="replicate"), FINE_STRIDE
    )
    (z, y, x), maps = nodes.shape[2:], []
    for edge, reach in SCALES:
        means = F.avg_pool3d(F.pad(nodes, 6 * (reach + edge // 2,), mode="replicate"), edge, 1)
        maps += [
            means[:, 0, i : i + z, j : j + y, k : k + x]
            for i, j, k in itertools.product((0, reach, 2 * reach), repeat=3)
        ]
    return torch.stack(maps, 1)
