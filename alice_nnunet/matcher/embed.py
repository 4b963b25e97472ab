"""How the embedding of a volume is made: its body through the network, resampled to a grid."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from alice_nnunet.data.body import tight_box
from alice_nnunet.data.volumes import Volume
from alice_nnunet.geometry import Spacing, Triple, ceil_to, triple
from alice_nnunet.matcher.context import ContextNet
from alice_nnunet.matcher.embedding import Embedding, Position, pack
from alice_nnunet.matcher.network import SamNet
from alice_nnunet.matcher.presets import FINE_STRIDE


def embed_volume(
    network: SamNet | ContextNet, volume: Volume, voxel: float, step: float, device: torch.device
) -> Embedding:
    """The embedding of a volume. Arguments as of body_vectors."""
    return pack(*body_vectors(network, volume, voxel, step, device))


def body_vectors(
    network: SamNet | ContextNet, volume: Volume, voxel: float, step: float, device: torch.device
) -> tuple[np.ndarray, Position, Spacing]:
    """The vectors in the box around a volume's body, from its first channel.

    Args:
        network: that makes the vectors, on device.
        volume: the preprocessed case.
        voxel: edge of a voxel of the network's input, mm.
        step: between nodes, mm; if it is smaller than the network's own, that is used.
        device: to compute on.

    Returns:
        vectors: (C, Z, Y, X) float32, 0 outside the body.
        origin: mm of the first node.
        step: mm from one node to the next.
    """
    first_channel = torch.from_numpy(np.ascontiguousarray(volume.image[:1])).to(device)
    image, spacing = resample(first_channel, volume.spacing, voxel)
    vectors = embed(network, image)  # (C, Z, Y, X)

    extent = np.array(vectors.shape[1:]) * FINE_STRIDE * spacing  # mm
    size = triple(min(n, max(1, round(e / step))) for n, e in zip(vectors.shape[1:], extent))
    if size != tuple(vectors.shape[1:]):
        halves = [resize_vectors(half[None], size)[0] for half in vectors.chunk(2)]
        vectors = torch.cat(halves) / 2**0.5

    steps = extent / size
    positions = [(np.arange(n) + 0.5) * s for n, s in zip(size, steps)]  # mm along each axis
    inside = body_at(volume, positions)
    box = triple(slice(start, stop) for start, stop in zip(*tight_box(inside)))
    in_box = (slice(None), *box)
    of_body = np.where(inside, vectors.float().cpu().numpy(), 0)[in_box]
    origin = triple(float(p[b.start]) for p, b in zip(positions, box))
    return of_body, origin, triple(map(float, steps))


def resample(
    image: Tensor, spacing: Spacing, voxel: float, size: Triple | None = None
) -> tuple[Tensor, Spacing]:
    """An image on voxels of about another size, averaged first where it is much finer.

    Args:
        image: (1, Z, Y, X).
        spacing: of the image, mm.
        voxel: wanted edge of a voxel, mm.
        size: of the result in voxels; by default as many as fit best.

    Returns:
        image: (1, *size).
        spacing: its exact spacing, mm.
    """
    old_size = image.shape[1:]
    size = size or triple(max(1, round(n * s / voxel)) for n, s in zip(old_size, spacing))
    factor = [max(1, int(voxel / s)) for s in spacing]
    averaged = F.avg_pool3d(image[None], factor, ceil_mode=True, count_include_pad=False)

    # The last averaged voxel may stick out of the image: sample only the share that it fills.
    share = torch.tensor([n / (a * f) for n, a, f in zip(old_size, averaged.shape[2:], factor)])
    share = share.flip(0)  # (x, y, z), as torch takes it
    theta = torch.cat([share.diag(), share[:, None] - 1], 1)[None].to(image)
    grid = F.affine_grid(theta, [1, 1, *size], align_corners=False)
    resampled = F.grid_sample(averaged, grid, padding_mode="border", align_corners=False)

    exact = triple(n * s / m for n, s, m in zip(old_size, spacing, size))
    return resampled[0], exact


@torch.inference_mode()
def embed(network: SamNet | ContextNet, image: Tensor) -> Tensor:
    """Fine and coarse vectors side by side on the fine grid, together of length 1.

    The coarse ones are interpolated. The similarity of two vectors is then the mean of their fine
    and their coarse similarity, as in SAM.

    Args:
        network: in any mode; it is left in evaluation mode.
        image: (1, Z, Y, X), 0 to 1.

    Returns:
        (2 C, Z / 2, Y / 2, X / 2), sizes rounded up.
    """
    size = ceil_to(image.shape[1:], network.stride)
    added = []
    for old, new in zip(image.shape[:0:-1], size[::-1]):  # x first, as F.pad takes it
        added += [0, new - old]

    fine, coarse = network.eval()(F.pad(image[None], added))
    vectors = torch.cat([fine, resize_vectors(coarse, fine.shape[2:])], 1)[0] / 2**0.5
    z, y, x = (-(-n // s) for n, s in zip(image.shape[1:], FINE_STRIDE))
    return vectors[:, :z, :y, :x]


def resize_vectors(vectors: Tensor, size: Sequence[int]) -> Tensor:
    """Vectors of length 1, (B, C, ...), interpolated on another grid over the same space."""
    return F.normalize(F.interpolate(vectors, size, mode="trilinear", align_corners=False), dim=1)


def body_at(volume: Volume, positions: list[np.ndarray]) -> np.ndarray:
    """Whether the nodes of a grid lie in the body.

    Args:
        volume: whose body it is.
        positions: mm of the nodes along z, y and x.

    Returns:
        bool (Z, Y, X).
    """
    body = volume.body
    cells = [
        np.minimum((p / spacing / edge).astype(int), n - 1)
        for p, spacing, edge, n in zip(positions, volume.spacing, body.cell, body.cells.shape)
    ]
    return body.cells[np.ix_(*cells)]
