"""Pictures that a person can judge: matches, reconstructions, predictions.

Volumes are (Z, Y, X) in canonical RAS, 0 at the floor of the window and 1 at its top; crops are
(C, D, H, W), of which the first channel is shown. Spacings are mm, (z, y, x).
"""

from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke
from torch import Tensor

from alice_nnunet.files import replacing
from alice_nnunet.geometry import Spacing, Triple, grid_of
from alice_nnunet.model.tokens import patchify, unpatchify

COLOURS = matplotlib.colormaps["tab10"]
NUMBER_OF_COLOURS = 10
SHOWN_POINTS = 6  # in a figure of patches
GREY = 0.5  # of hidden tokens
AIR = 0.05  # values up to this one are outside a body
MARGIN = 3  # voxels around a body


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


def mark_sides(*axes: Axes) -> None:
    """Write R and L, the patient's sides, into slices as show_plane draws them."""
    for axis in axes:
        for across, letter in ((0.03, "R"), (0.97, "L")):
            write(axis, across, 0.5, letter, transform=axis.transAxes, ha="center", va="center")


def write(axis: Axes, across: float, up: float, text: str, **style) -> None:
    """Write white text with a black edge: it can be read on air and on bone."""
    edge = [withStroke(linewidth=2.5, foreground="black")]
    axis.text(across, up, text, color="white", fontsize=10, path_effects=edge, **style)


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
    """A matched pair of crops, (C, D, H, W) each, one above the other; a + marks the middle."""
    figure = Figure(figsize=(8, 8), layout="constrained")
    for (axial, coronal), crop, title in zip(figure.subplots(2, 2), (query, key), titles):
        show_planes(axial, coronal, crop[0], spacing, title)
        mark_sides(axial, coronal)

        z, y, x = (size // 2 for size in crop.shape[1:])
        across = crop.shape[3] - 1 - x
        for axis, up in ((axial, y), (coronal, z)):
            axis.plot(across, up, "+", color="yellow", markersize=12)
    return figure


def reconstruct(
    crop: Tensor, predicted: Tensor, masked: Tensor, unit: Triple
) -> tuple[np.ndarray, np.ndarray]:
    """The crop with hidden tokens grey, and with hidden tokens as predicted.

    Args:
        crop: (C, D, H, W).
        predicted: (N, C * voxels of a unit), see losses.voxels_of.
        masked: (N,), True where hidden.
        unit: voxels of a token.

    Returns:
        Two arrays, (C, D, H, W) each.
    """
    tokens = patchify(crop[None].float(), unit)  # (1, N, voxels)
    grid = grid_of(crop.shape[1:], unit)

    def with_hidden(values: Tensor) -> np.ndarray:
        shown = torch.where(masked[None, :, None], values, tokens)
        return unpatchify(shown, grid, unit)[0].cpu().numpy()

    return with_hidden(torch.full_like(tokens, GREY)), with_hidden(predicted[None].float())


def reconstruction_figure(
    crop: Tensor,
    predicted: Tensor,
    masked: Tensor,
    unit: Triple,
    spacing: Spacing,
    note: str = "",
) -> Figure:
    """Target, what the encoder saw, reconstruction and difference, one above the other.

    The first three have one grey window. Shapes as in reconstruct.

    Args:
        crop: the target.
        predicted: voxels of each token.
        masked: hidden tokens.
        unit: voxels of a token.
        spacing: mm.
        note: above the picture, such as the step.
    """
    target = crop.float().cpu().numpy()
    hidden, filled = reconstruct(crop, predicted, masked, unit)
    visible = 1 - masked.float().mean().item()
    rows = {
        "target": target,
        f"visible to the encoder ({visible:.0%})": hidden,
        "reconstruction of the hidden part": filled,
    }

    figure = Figure(figsize=(8, 13), layout="constrained")
    axes = figure.subplots(4, 2)
    for (axial, coronal), (title, volume) in zip(axes, rows.items()):
        show_planes(axial, coronal, volume[0], spacing, title)

    difference = filled[0] - target[0]
    z = difference.shape[0] // 2
    y = difference.shape[1] // 2
    style = {"cmap": "RdBu_r", "vmin": -0.5, "vmax": 0.5}
    show_axial(axes[3, 0], difference[z], spacing, **style)
    show_coronal(axes[3, 1], difference[:, y], spacing, **style)
    axes[3, 0].set_title("difference, axial", fontsize=9)
    axes[3, 1].set_title("difference, coronal", fontsize=9)
    figure.colorbar(axes[3, 1].images[0], ax=list(axes[3]), shrink=0.7, label="share of the window")
    figure.suptitle(note, fontsize=10)
    return figure


@dataclass(frozen=True)
class Segmented:
    """A scan, its reference, and predictions of it. Arrays are (Z, Y, X).

    Attributes:
        name: of the case.
        image: 0 to 1.
        spacing: mm.
        reference: labels; 0 background, 1 .. len(names).
        predicted: title -> labels, of each prediction.
        names: of the labels.
    """

    name: str
    image: np.ndarray
    spacing: Spacing
    reference: np.ndarray
    predicted: dict[str, np.ndarray]
    names: list[str]


def prediction_figure(cases: list[Segmented]) -> Figure:
    """Reference and predictions of each case, beside each other over the CT."""
    figure = Figure(figsize=(11, 7.5 * len(cases)), layout="constrained")
    parts = figure.subfigures(len(cases), 1, squeeze=False)[:, 0]
    for part, case in zip(parts, cases):
        show_segmented(part, case)
    return figure


def show_segmented(figure: SubFigure, case: Segmented) -> None:
    """Draw the axial and the coronal slice with most reference voxels, one below the other."""
    inside = case.reference > 0
    z = inside.sum((1, 2)).argmax()
    y = inside.sum((0, 2)).argmax()
    overlay = {
        "cmap": COLOURS,
        "vmin": 0,
        "vmax": NUMBER_OF_COLOURS - 1,
        "alpha": 0.5,
        "interpolation": "nearest",
    }

    columns = {"reference": case.reference, **case.predicted}
    axes = figure.subplots(2, len(columns), squeeze=False)
    for (axial, coronal), (title, labels) in zip(axes.T, columns.items()):
        foreground = np.ma.masked_equal(labels, 0)
        show_axial(axial, case.image[z], case.spacing)
        show_axial(axial, foreground[z], case.spacing, **overlay)
        show_coronal(coronal, case.image[:, y], case.spacing)
        show_coronal(coronal, foreground[:, y], case.spacing, **overlay)
        axial.set_title(f"{case.name}, {title}", fontsize=10)

    handles = [Patch(color=COLOURS(i), label=name) for i, name in enumerate(case.names, 1)]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(case.names))


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
    write(axis, across + 1, up + 1, str(number))


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


@dataclass(frozen=True)
class ShownVolume:
    """A volume to draw matches in, and the box around its body.

    Attributes:
        image: (Z, Y, X).
        name: of the case.
        low: first voxel (z, y, x) of the box.
        high: voxel after the last.
    """

    image: np.ndarray
    name: str
    low: np.ndarray
    high: np.ndarray


def around_body(image: np.ndarray, name: str) -> ShownVolume:
    """Find the box around everything that is not air, with a margin."""
    inside = image > AIR
    low = []
    high = []
    for axis in range(3):
        others = tuple(other for other in range(3) if other != axis)
        places = np.flatnonzero(inside.any(others))
        if not len(places):
            places = np.arange(image.shape[axis])
        low.append(max(0, places[0] - MARGIN))
        high.append(min(image.shape[axis], places[-1] + 1 + MARGIN))
    return ShownVolume(image, name, np.array(low), np.array(high))


def matches_figure(
    query: ShownVolume,
    key: ShownVolume,
    points: np.ndarray,
    matches: np.ndarray,
    scores: list[float],
    spacing: Spacing,
    threshold: float,
) -> Figure:
    """Points of one volume and their matches in another; a row of slices for each, with its score.

    Slices are cut to the body and have one scale. The frame of a match is green where its score
    reaches the threshold, else red.

    Args:
        query: has the points.
        key: has the matches.
        points: (P, 3) voxels of the query.
        matches: (P, 3) voxels of the key.
        scores: of the matches.
        spacing: mm, of both.
        threshold: score from which a match is accepted.
    """
    # The largest of both boxes, for all slices: one scale.
    size = np.maximum(query.high - query.low, key.high - key.low)

    depth, height, width = size * spacing
    figure = Figure(
        figsize=(13, 13 / 4 * len(points) * max(height, depth) / width + 0.6), layout="constrained"
    )
    rows = figure.subplots(len(points), 4, squeeze=False)

    for number, axes in enumerate(rows, 1):
        score = scores[number - 1]
        accepted = score >= threshold
        cross_hairs(axes[:2], query, points[number - 1], size, spacing, number)
        cross_hairs(axes[2:], key, matches[number - 1], size, spacing, number)
        verdict = "accepted" if accepted else "rejected"
        axes[2].set_title(f"{key.name}, score {score:.2f}, {verdict}", fontsize=9)
        for axis in axes[2:]:
            frame(axis, "limegreen" if accepted else "red")

    figure.suptitle(
        f"{query.name} (left) and its matches in {key.name} (right); accepted from a score of "
        f"{threshold:.2f}",
        fontsize=10,
    )
    return figure


def cross_hairs(
    axes: np.ndarray,
    shown: ShownVolume,
    point: np.ndarray,
    size: np.ndarray,
    spacing: Spacing,
    number: int,
) -> None:
    """Draw the axial and the coronal slice through a point, with cross-hairs and its number.

    Args:
        axes: two to draw on.
        shown: the volume.
        point: voxel (z, y, x).
        size: voxels (z, y, x) that each slice shows, the body in their middle.
        spacing: mm.
        number: of the point.
    """
    axial, coronal = axes
    z, y, x = np.clip(np.round(point).astype(int), 0, np.array(shown.image.shape) - 1)
    show_axial(axial, shown.image[z], spacing)
    show_coronal(coronal, shown.image[:, y], spacing)
    axial.set_title(f"{shown.name}, axial", fontsize=9)
    coronal.set_title("coronal", fontsize=9)

    middle = (shown.low + shown.high - 1) / 2
    across = shown.image.shape[2] - 1 - x
    middle_across = shown.image.shape[2] - 1 - middle[2]

    for axis, up, dimension in ((axial, y, 1), (coronal, z, 0)):
        axis.axvline(across, color="yellow", linewidth=0.7, alpha=0.7)
        axis.axhline(up, color="yellow", linewidth=0.7, alpha=0.7)
        write(axis, across + size[2] / 40, up + size[dimension] / 40, str(number), weight="bold")

        axis.set_facecolor("black")
        axis.set_xlim(middle_across - size[2] / 2, middle_across + size[2] / 2)
        half = size[dimension] / 2
        axis.set_ylim(middle[dimension] - half, middle[dimension] + half)
        frame(axis, "grey")
    mark_sides(axial, coronal)


def frame(axis: Axes, colour: str) -> None:
    """Draw a coloured frame around a slice."""
    axis.axis("on")
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set_color(colour)
        spine.set_linewidth(1 if colour == "grey" else 3)
