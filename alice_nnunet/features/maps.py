"""Features of a whole scan: a map for each stage, window by window, and one vector.

An encoder has seen crops of one size alone, so a scan is encoded in windows of that size, which
overlap by half and are blended.
"""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from monai.data.utils import compute_importance_map
from torch import Tensor

from alice_nnunet.features.scans import PreparedScan
from alice_nnunet.geometry import Spacing, Triple, ceil_to, triple
from alice_nnunet.model.encoders.base import Encoder
from alice_nnunet.networks.padding import pad_to
from alice_nnunet.settings.device import half_precision

WINDOWS_AT_ONCE = 4  # that go through the encoder


@dataclass(frozen=True)
class FeatureMap:
    """The features of one stage over a whole scan.

    Attributes:
        values: (channels, d, h, w) float32.
        affine: (4, 4), from positions (x, y, z) of the map to mm in RAS.
        spacing: mm from one position to the next, (z, y, x).
    """

    values: Tensor
    affine: np.ndarray
    spacing: Spacing


@dataclass(frozen=True)
class ScanFeatures:
    """What an encoder makes of a scan.

    Attributes:
        vector: (channels,) float32, the mean of the last stage over the content.
        maps: of each stage, finest first.
        content: (d, h, w) bool, positions of the last stage whose voxels are not all of one value.
    """

    vector: Tensor
    maps: tuple[FeatureMap, ...]
    content: Tensor


@torch.no_grad()
def scan_features(encoder: Encoder, scan: PreparedScan, device: torch.device) -> ScanFeatures:
    """Encode a whole scan.

    Args:
        encoder: on the device, in evaluation mode.
        scan: as the pretraining's preparation makes it.
        device: of the encoder. Maps are put together on the CPU.
    """
    window = triple(n * u for n, u in zip(encoder.grid, encoder.unit))
    size = triple(scan.image.shape[1:])
    image = padded(encoder, scan)
    whole = triple(image.shape[2:])

    values = blended(encoder, image, window, device)
    maps = []
    for of_stage in values:
        step = triple(n // m for n, m in zip(whole, of_stage.shape[1:]))
        inside = tuple(slice(-(-s // t)) for s, t in zip(size, step))
        maps.append(
            FeatureMap(
                values=of_stage[(slice(None), *inside)].contiguous(),
                affine=coarse_affine(scan.affine, step),
                spacing=triple(s * t for s, t in zip(scan.spacing, step)),
            )
        )

    content = content_of_map(encoder, scan, maps[-1])
    return ScanFeatures(mean_over(maps[-1].values, content), tuple(maps), content)


def padded(encoder: Encoder, scan: PreparedScan) -> Tensor:
    """The scan with air behind it, (1, C, D, H, W), in whole units and at least a window large."""
    window = triple(n * u for n, u in zip(encoder.grid, encoder.unit))
    whole = ceil_to(triple(scan.image.shape[1:]), encoder.unit)
    return pad_to(scan.image[None], triple(max(s, w) for s, w in zip(whole, window)))


def content_of_map(encoder: Encoder, scan: PreparedScan, of_stage: FeatureMap) -> Tensor:
    """(d, h, w) bool, positions of a map whose voxels are not all of one value."""
    step = triple(round(m / s) for m, s in zip(of_stage.spacing, scan.spacing))
    content = content_of(padded(encoder, scan)[0], step)
    return content[tuple(slice(n) for n in of_stage.values.shape[1:])]


def blended(encoder: Encoder, image: Tensor, window: Triple, device: torch.device) -> list[Tensor]:
    """The features of each stage, (channels, d, h, w), as weighted means over windows.

    Args:
        encoder: on the device.
        image: (1, C, D, H, W) on the CPU, whole units and at least a window large.
        window: voxels (z, y, x), whole units.
        device: of the encoder.
    """
    size = triple(image.shape[2:])
    starts = [window_starts(n, w, u) for n, w, u in zip(size, window, encoder.unit)]
    sums: list[Tensor] = []
    weights: list[Tensor] = []

    places = (triple(start) for start in itertools.product(*starts))
    for some in batched(places, WINDOWS_AT_ONCE):
        crops = torch.cat([image[(slice(None), slice(None), *box(s, window))] for s in some])
        with half_precision(device):
            stages = encoder.features(crops.to(device))

        for number, of_windows in enumerate(stages):
            step = triple(w // m for w, m in zip(window, of_windows.shape[2:]))
            if number == len(sums):
                grid = triple(n // t for n, t in zip(size, step))
                sums.append(torch.zeros(of_windows.shape[1], *grid))
                weights.append(torch.zeros(grid))

            weight = window_weight(triple(of_windows.shape[2:]))
            for start, of_window in zip(some, of_windows.float().cpu()):
                here = tuple(slice(s // t, (s + w) // t) for s, w, t in zip(start, window, step))
                sums[number][(slice(None), *here)] += of_window * weight
                weights[number][here] += weight

    return [total / weight for total, weight in zip(sums, weights)]


def batched(starts: Iterable[Triple], number: int) -> Iterator[list[Triple]]:
    """Lists of so many items, and of the rest (Python 3.12 has itertools.batched)."""
    left = iter(starts)
    while some := list(itertools.islice(left, number)):
        yield some


def box(start: Triple, window: Triple) -> tuple[slice, slice, slice]:
    """Where a window lies."""
    z, y, x = (slice(s, s + w) for s, w in zip(start, window))
    return z, y, x


def window_starts(size: int, window: int, unit: int) -> list[int]:
    """First voxels of windows along an axis: whole units, overlapping by at least half."""
    step = max(1, window // unit // 2) * unit
    starts = list(range(0, size - window, step))
    return [*starts, size - window]


def window_weight(grid: Triple) -> Tensor:
    """(d, h, w) weights of a window's positions: MONAI's Gaussian, nowhere 0."""
    return compute_importance_map(grid, mode="gaussian", sigma_scale=1 / 8, device="cpu")


def coarse_affine(affine: np.ndarray, step: Triple) -> np.ndarray:
    """The affine of a map whose position i holds voxels i * step to (i + 1) * step - 1.

    Args:
        affine: (4, 4), of the voxels (x, y, z).
        step: voxels (z, y, x).
    """
    scale = np.array(step[::-1], float)
    to_voxels = np.diag([*scale, 1.0])
    to_voxels[:3, 3] = (scale - 1) / 2
    return affine @ to_voxels


def content_of(image: Tensor, step: Triple) -> Tensor:
    """(C, D, H, W) -> (d, h, w), True where the voxels of a position are not all of one value."""
    top = F.max_pool3d(image, step)
    bottom = -F.max_pool3d(-image, step)
    return (top > bottom).any(0)


def mean_over(values: Tensor, content: Tensor) -> Tensor:
    """(channels, d, h, w) -> (channels,) mean over the content, over everything if it is empty."""
    if not content.any():
        content = torch.ones_like(content)
    return values[:, content].mean(1)
