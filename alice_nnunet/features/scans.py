"""Scans as an encoder wants them: canonical axes, intensities and spacing of its pretraining."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from nnunetv2.imageio.nibabel_reader_writer import NibabelIOWithReorient
from nnunetv2.preprocessing.normalization.default_normalization_schemes import ZScoreNormalization
from nnunetv2.preprocessing.resampling.default_resampling import (
    compute_new_shape,
    resample_data_or_seg_to_shape,
)
from torch import Tensor

from alice_nnunet.checks.findings import NO_DECISIONS, Decisions
from alice_nnunet.checks.voxels import Window
from alice_nnunet.datasets.raw_image import check_voxels, read_case
from alice_nnunet.geometry import Spacing, Triple, triple
from alice_nnunet.networks.padding import pad_to


@dataclass(frozen=True)
class CanonicalScan:
    """A scan as its files have it, turned to RAS.

    Attributes:
        image: (C, Z, Y, X) float32, HU for CT.
        affine: (4, 4), from voxels (x, y, z) to mm in RAS.
        spacing: mm, (z, y, x).
        warnings: what is remarkable in the files, one line each.
    """

    image: np.ndarray
    affine: np.ndarray
    spacing: Spacing
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class PreparedScan:
    """A scan with the intensities and the spacing of a pretraining.

    Attributes:
        image: (C, Z, Y, X) float32; 0 to 1 for CT, but for ripples of the resampling.
        affine: (4, 4), from voxels (x, y, z) to mm in RAS.
        spacing: mm, (z, y, x).
        warnings: what is remarkable in the files, one line each.
    """

    image: Tensor
    affine: np.ndarray
    spacing: Spacing
    warnings: tuple[str, ...] = ()


def read_scan(
    files: list[Path], windows: list[Window | None], decisions: Decisions = NO_DECISIONS
) -> CanonicalScan:
    """Read a scan, with the same checks of headers and intensities as everywhere.

    Args:
        files: one for each channel.
        windows: bottom and top in HU for each CT channel, None for the others.
        decisions: of the user.

    Raises:
        ValueError: it cannot be used, with the reason.
    """
    image, properties, findings = read_case(files, NibabelIOWithReorient(), decisions)
    spacing = triple(float(s) for s in properties["spacing"])
    names = [path.name for path in files]
    findings = [*findings, *check_voxels(image, windows, names, spacing, decisions)]

    affine = np.asarray(properties["nibabel_stuff"]["reoriented_affine"], float)
    return CanonicalScan(image, affine, spacing, tuple(finding.text for finding in findings))


def to_window(image: np.ndarray, window: Window) -> np.ndarray:
    """HU clipped to a window, as 0 to 1."""
    low, high = window
    return ((np.clip(image, low, high) - low) / (high - low)).astype(np.float32)


def resized_affine(affine: np.ndarray, old: Triple, new: Triple) -> np.ndarray:
    """The affine of an image that covers the same box in mm with another number of voxels.

    Args:
        affine: (4, 4), of voxels (x, y, z).
        old: voxels (z, y, x).
        new: voxels (z, y, x).
    """
    factor = np.array([o / n for o, n in zip(old[::-1], new[::-1])])
    to_old = np.diag([*factor, 1.0])
    to_old[:3, 3] = factor / 2 - 0.5  # the outer faces stay where they are, not the outer voxels
    return affine @ to_old


@dataclass(frozen=True)
class Preparation:
    """What an encoder needs to be done to a scan: what its pretraining did to its own.

    Calling it with a scan gives what the encoder takes; `scan` also gives where the voxels lie.

    Attributes:
        spacing: mm, (z, y, x).
        windows: bottom and top in HU for each CT channel; None for z-scores, as nnU-Net's.
        crop_size: voxels of the crops of the pretraining, (z, y, x).
        unit: voxels (z, y, x); the encoder takes images of whole numbers of units.
        decisions: of the user, where a file leaves a choice.
    """

    spacing: Spacing
    windows: tuple[Window | None, ...]
    crop_size: Triple
    unit: Triple
    decisions: Decisions = NO_DECISIONS

    def __call__(self, *files: str | Path) -> Tensor:
        """A whole scan for the encoder.

        Args:
            *files: one for each channel, of any format and orientation that alice-preprocess reads.

        Returns:
            (1, C, D, H, W) float32 in RAS, padded with 0 at the end of each axis to whole units.

        Raises:
            ValueError: the scan cannot be used, with the reason.
        """
        return pad_to(self.scan(*files).image[None], self.unit)

    def scan(self, *files: str | Path) -> PreparedScan:
        """The same without padding, and where it lies in mm."""
        if len(files) != len(self.windows):
            raise ValueError(
                f"{len(files)} files were given, and the encoder was pretrained on "
                f"{len(self.windows)} channels: give one file for each"
            )
        found = read_scan([Path(f) for f in files], list(self.windows), self.decisions)

        size = triple(found.image.shape[1:])
        new_size = triple(int(n) for n in compute_new_shape(size, found.spacing, self.spacing))
        if min(new_size) < 1:
            raise ValueError(f"too small for a spacing of {self.spacing} mm (z, y, x)")

        resampled = resample_data_or_seg_to_shape(
            self.normalized(found.image),
            new_size,
            found.spacing,
            self.spacing,
            is_seg=False,
            order=3,
            order_z=0,
            force_separate_z=None,
        )
        image = torch.from_numpy(np.ascontiguousarray(resampled, np.float32))
        affine = resized_affine(found.affine, size, new_size)
        return PreparedScan(image, affine, self.spacing, found.warnings)

    def normalized(self, image: np.ndarray) -> np.ndarray:
        """(C, Z, Y, X) -> each channel in its window, or as z-scores over the scan."""
        channels = []
        for channel, window in zip(image, self.windows):
            if window is None:
                scheme = ZScoreNormalization(False, {})
                channels.append(scheme.run(channel.copy()))
            else:
                channels.append(to_window(channel, window))
        return np.stack(channels)
