"""Pictures of features: their first three principal components as colours over the scan.

One projection is fitted for all scans, so that a colour means the same in each of them.
"""

from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from sklearn.decomposition import PCA

from alice_nnunet.geometry import Spacing, triple
from alice_nnunet.pictures import mark_sides, show_axial, show_coronal

TOKENS = 256  # of a scan, that the projection is fitted to
COLOUR_RANGE = (2, 98)  # percentiles of a component that are the darkest and the brightest
OPACITY = 0.55  # of the colours over the scan


@dataclass(frozen=True)
class ShownScan:
    """The middle slices of a scan.

    Attributes:
        axial: (Y, X), 0 to 1.
        coronal: (Z, X), 0 to 1.
        size: voxels (z, y, x) of the scan.
        spacing: mm, (z, y, x).
    """

    axial: np.ndarray
    coronal: np.ndarray
    size: tuple[int, int, int]
    spacing: Spacing


def shown_scan(image: np.ndarray, spacing: Spacing) -> ShownScan:
    """The middle slices of the first channel of an image (C, Z, Y, X)."""
    first = image[0]
    low = float(first.min())
    high = float(first.max())
    z = first.shape[0] // 2
    y = first.shape[1] // 2
    grey = [(plane - low) / max(high - low, 1e-6) for plane in (first[z], first[:, y])]
    axial, coronal = (np.clip(plane, 0, 1).astype(np.float16) for plane in grey)
    return ShownScan(axial, coronal, triple(first.shape), spacing)


def sampled_tokens(values: np.ndarray, content: np.ndarray, seed: int) -> np.ndarray:
    """Some tokens of a map, for the projection.

    Args:
        values: (channels, d, h, w).
        content: (d, h, w) bool, of which tokens are drawn; of all where it is empty.
        seed: of the draw.

    Returns:
        (tokens, channels), at most TOKENS of them.
    """
    chosen = content if content.any() else np.ones_like(content)
    tokens = values[:, chosen].T
    if len(tokens) <= TOKENS:
        return tokens
    rng = np.random.default_rng(seed)
    return tokens[rng.choice(len(tokens), TOKENS, replace=False)]


@dataclass(frozen=True)
class Colours:
    """A projection of features to red, green and blue.

    Attributes:
        pca: of three components.
        low: (3,) of each component, black.
        high: (3,) of each component, full colour.
    """

    pca: PCA
    low: np.ndarray
    high: np.ndarray

    def of(self, values: np.ndarray) -> np.ndarray:
        """(channels, a, b) -> (a, b, 3), 0 to 1."""
        projected = self.pca.transform(np.moveaxis(values, 0, -1).reshape(-1, len(values)))
        scaled = np.clip((projected - self.low) / np.maximum(self.high - self.low, 1e-6), 0, 1)
        return scaled.reshape(*values.shape[1:], 3)


def fit_colours(tokens: np.ndarray) -> Colours:
    """Fit the projection. tokens: (tokens, channels), at least 3 of each.

    Raises:
        ValueError: there are fewer.
    """
    if min(tokens.shape) < 3:
        raise ValueError(f"three colours need at least 3 tokens of 3 channels, got {tokens.shape}")
    pca = PCA(3, random_state=0).fit(tokens)
    low, high = np.percentile(pca.transform(tokens), COLOUR_RANGE, axis=0)
    return Colours(pca, low, high)


def pca_figure(
    shown: ShownScan, values: np.ndarray, step: tuple[int, int, int], colours: Colours, name: str
) -> Figure:
    """The middle slices of a scan, plain and under the colours of its features.

    Args:
        shown: the scan.
        values: (channels, d, h, w) of the last stage.
        step: voxels (z, y, x) of a position of the map.
        colours: the projection.
        name: of the scan.
    """
    depth, height, width = shown.size
    middle_z = min(depth // 2 // step[0], values.shape[1] - 1)
    middle_y = min(height // 2 // step[1], values.shape[2] - 1)
    axial = over_voxels(colours.of(values[:, middle_z]), step[1:], (height, width))
    coronal = over_voxels(colours.of(values[:, :, middle_y]), (step[0], step[2]), (depth, width))

    figure = Figure(figsize=(9, 8), layout="constrained")
    rows = figure.subplots(2, 2)
    planes = ((shown.axial, axial, show_axial), (shown.coronal, coronal, show_coronal))
    for axes, (grey, coloured, show) in zip(rows, planes):
        grey = grey.astype(np.float32)
        for axis in axes:
            show(axis, grey, shown.spacing)
        show(axes[1], coloured, shown.spacing, alpha=OPACITY)
        mark_sides(*axes)
    rows[0, 0].set_title(name, fontsize=9)
    rows[0, 1].set_title("features: three principal components", fontsize=9)
    return figure


def over_voxels(coloured: np.ndarray, step: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
    """(a, b, 3) positions -> (A, B, 3) pixels of a slice, each position as a block of voxels."""
    blocks = coloured.repeat(step[0], 0).repeat(step[1], 1)
    return blocks[: size[0], : size[1]]
