"""Pictures that a person can judge: matches, reconstructions, predictions.

Volumes are (Z, Y, X) in canonical RAS, 0 at the floor of the window and 1 at its top; crops are
(C, D, H, W), of which the first channel is shown. Spacings are mm, (z, y, x).
"""

from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from torch import Tensor

from alice_nnunet.files import replacing
from alice_nnunet.geometry import Spacing, Triple, grid_of
from alice_nnunet.model.tokens import patchify, unpatchify

COLOURS = matplotlib.colormaps["tab10"]
NUMBER_OF_COLOURS = 10
SHOWN_POINTS = 6  # in a figure of patches
GREY = 0.5  # of hidden tokens


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, completely or not at all."""
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=100)


def show_axial(axis: Axes, plane: np.ndarray, spacing: Spacing, **style) -> None:
    """Draw an axial slice, upright, in true proportions, with the patient's right on the left.

    Args:
        axis: to draw on.
        plane: (Y, X).
        spacing: mm.
        style: keywords of matplotlib's imshow; by default the slice is grey.
    """
    show_plane(axis, plane, spacing[1] / spacing[2], **style)


def show_coronal(axis: Axes, plane: np.ndarray, spacing: Spacing, **style) -> None:
    """Draw a coronal slice, (Z, X), like show_axial."""
    show_plane(axis, plane, spacing[0] / spacing[2], **style)


def show_plane(axis: Axes, plane: np.ndarray, aspect: float, **style) -> None:
    """Draw a slice. aspect: height over width of a pixel."""
    style = style or {"cmap": "gray", "vmin": 0, "vmax": 1}
    axis.imshow(plane[:, ::-1], origin="lower", aspect=aspect, **style)
    axis.axis("off")


def show_planes(
    axial: Axes, coronal: Axes, volume: np.ndarray, spacing: Spacing, title: str
) -> None:
    """Draw the middle axial and the middle coronal slice of a volume."""
    z = volume.shape[0] // 2
    y = volume.shape[1] // 2
    show_axial(axial, volume[z], spacing)
    show_coronal(coronal, volume[:, y], spacing)
    axial.set_title(f"{title}, axial", fontsize=9)
    coronal.set_title(f"{title}, coronal", fontsize=9)


def pair_figure(
    query: np.ndarray, key: np.ndarray, spacing: Spacing, titles: tuple[str, str]
) -> Figure:
    """A matched pair of crops, (C, D, H, W) each, one above the other."""
    figure = Figure(figsize=(8, 8), layout="constrained")
    for (axial, coronal), crop, title in zip(figure.subplots(2, 2), (query, key), titles):
        show_planes(axial, coronal, crop[0], spacing, title)
    return figure


def reconstruct(
    crop: Tensor, predicted: Tensor, masked: Tensor, unit: Triple
) -> tuple[np.ndarray, np.ndarray]:
    """The crop with hidden tokens grey, and with hidden tokens as predicted.

    Predictions are normalised per token. Mean and deviation of the true token are put back, so the
    picture shows structure, not brightness, as MAE's pictures do.

    Args:
        crop: (C, D, H, W).
        predicted: (N, C * voxels of a unit).
        masked: (N,), True where hidden.
        unit: voxels of a token.

    Returns:
        Two arrays, (C, D, H, W) each.
    """
    tokens = patchify(crop[None].float(), unit)  # (1, N, voxels)
    variance, mean = torch.var_mean(tokens, dim=-1, keepdim=True)
    filled = predicted[None].float() * (variance + 1e-6).sqrt() + mean
    grid = grid_of(crop.shape[1:], unit)

    def with_hidden(values: Tensor) -> np.ndarray:
        shown = torch.where(masked[None, :, None], values, tokens)
        return unpatchify(shown, grid, unit)[0].cpu().numpy()

    return with_hidden(torch.full_like(tokens, GREY)), with_hidden(filled)


def reconstruction_figure(
    crop: Tensor, predicted: Tensor, masked: Tensor, unit: Triple, spacing: Spacing
) -> Figure:
    """Crop, masked crop and reconstruction, one above the other. Shapes as in reconstruct."""
    hidden, filled = reconstruct(crop, predicted, masked, unit)
    visible = 1 - masked.float().mean().item()
    rows = {
        "crop": crop.float().cpu().numpy(),
        f"seen by the encoder ({visible:.0%})": hidden,
        "hidden part reconstructed": filled,
    }

    figure = Figure(figsize=(8, 11), layout="constrained")
    for (axial, coronal), (title, volume) in zip(figure.subplots(3, 2), rows.items()):
        show_planes(axial, coronal, volume[0], spacing, title)
    return figure


def prediction_figure(
    image: np.ndarray,
    predicted: np.ndarray,
    reference: np.ndarray,
    spacing: Spacing,
    names: list[str],
) -> Figure:
    """Prediction and reference over the CT, in the slices with most reference voxels.

    Args:
        image: (Z, Y, X).
        predicted: labels (Z, Y, X); 0 background, 1 .. len(names).
        reference: labels (Z, Y, X).
        spacing: mm.
        names: of the labels.
    """
    inside = reference > 0
    z = inside.sum((1, 2)).argmax()
    y = inside.sum((0, 2)).argmax()
    overlay = {
        "cmap": COLOURS,
        "vmin": 0,
        "vmax": NUMBER_OF_COLOURS - 1,
        "alpha": 0.5,
        "interpolation": "nearest",
    }

    figure = Figure(figsize=(11, 9), layout="constrained")
    rows = {"prediction": predicted, "reference": reference}
    for (axial, coronal), (title, labels) in zip(figure.subplots(2, 2), rows.items()):
        foreground = np.ma.masked_equal(labels, 0)
        show_axial(axial, image[z], spacing)
        show_axial(axial, foreground[z], spacing, **overlay)
        show_coronal(coronal, image[:, y], spacing)
        show_coronal(coronal, foreground[:, y], spacing, **overlay)
        axial.set_title(f"{title}, axial", fontsize=10)
        coronal.set_title(f"{title}, coronal", fontsize=10)

    handles = [Patch(color=COLOURS(i), label=name) for i, name in enumerate(names, 1)]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(names))
    return figure


def mark_points(
    axial: Axes,
    coronal: Axes,
    volume: np.ndarray,
    spacing: Spacing,
    points: np.ndarray,
    title: str,
    first_number: int = 1,
) -> None:
    """Draw numbered points over the axial and the coronal slice through the first of them.

    Points of other slices are drawn where they project to.

    Args:
        axial: to draw on.
        coronal: to draw on.
        volume: (Z, Y, X).
        spacing: mm.
        points: (P, 3) voxels (z, y, x).
        title: of both slices.
        first_number: of the first point.
    """
    z, y, _ = np.clip(points[0].astype(int), 0, np.array(volume.shape) - 1)
    show_axial(axial, volume[z], spacing)
    show_coronal(coronal, volume[:, y], spacing)
    axial.set_title(f"{title}, axial", fontsize=9)
    coronal.set_title(f"{title}, coronal", fontsize=9)

    for number, point in enumerate(points, first_number):
        across = volume.shape[2] - 1 - point[2]
        mark(axial, across, point[1], number)
        mark(coronal, across, point[0], number)


def mark(axis: Axes, across: float, up: float, number: int) -> None:
    """Draw one numbered point."""
    colour = COLOURS((number - 1) % NUMBER_OF_COLOURS)
    axis.plot(across, up, "o", color=colour, markersize=5, markeredgecolor="white")
    axis.annotate(
        str(number),
        (across, up),
        color=colour,
        fontsize=9,
        xytext=(3, 3),
        textcoords="offset points",
    )


def patches_figure(
    first: np.ndarray,
    second: np.ndarray,
    first_places: np.ndarray,
    second_places: np.ndarray,
    case: str,
) -> Figure:
    """Two augmented patches of one volume; equal numbers mark the same place.

    Args:
        first: (D, H, W); voxels are cubes.
        second: (D, H, W).
        first_places: (P, 3) of points that both patches show; -1 and 1 are the patch's edges.
        second_places: (P, 3) of the same points in the second patch.
        case: name of the volume.
    """
    number = min(SHOWN_POINTS, len(first_places))
    chosen = np.linspace(0, len(first_places) - 1, number).astype(int)

    figure = Figure(figsize=(8, 8), layout="constrained")
    rows = (("one patch", first, first_places), ("another", second, second_places))
    for (axial, coronal), (title, patch, places) in zip(figure.subplots(2, 2), rows):
        points = (places[chosen] + 1) / 2 * patch.shape - 0.5
        mark_points(axial, coronal, patch, (1, 1, 1), points, f"{case}, {title}")
    return figure


def matches_figure(
    query: np.ndarray,
    key: np.ndarray,
    points: np.ndarray,
    matches: np.ndarray,
    scores: list[float],
    spacing: Spacing,
    titles: tuple[str, str],
) -> Figure:
    """Points of one volume and their matches in another; a row of slices for each, with its score.

    Args:
        query: (Z, Y, X).
        key: (Z, Y, X).
        points: (P, 3) voxels of the query.
        matches: (P, 3) voxels of the key.
        scores: of the matches.
        spacing: mm, of both.
        titles: of the query and of the key.
    """
    figure = Figure(figsize=(12, 3.2 * len(points)), layout="constrained")
    rows = figure.subplots(len(points), 4, squeeze=False)
    for i, axes in enumerate(rows):
        title = f"{titles[1]}, score {scores[i]:.2f}"
        mark_points(axes[0], axes[1], query, spacing, points[i : i + 1], titles[0], i + 1)
        mark_points(axes[2], axes[3], key, spacing, matches[i : i + 1], title, i + 1)
    return figure
