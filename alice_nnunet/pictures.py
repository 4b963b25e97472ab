"""Pictures a person can judge: matched crops and reconstructions. Crops are (C, D, H, W); the first channel is shown."""

from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from alice_nnunet.files import replacing
from alice_nnunet.geometry import Triple
from alice_nnunet.model.tokens import patchify, unpatchify


def save_figure(figure: Figure, path: Path) -> None:
    """Write figure as PNG, whole or not at all."""
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=100)


def show_planes(axes, volume: np.ndarray, spacing: tuple[float, float, float], title: str) -> None:
    """Middle axial and middle coronal slice, upright, in true proportions.

    axes: two matplotlib axes. volume: (Z, Y, X) in canonical RAS, window floor 0 and top 1. spacing: (z, y, x) mm.
    """
    z, y, _ = (n // 2 for n in volume.shape)
    axial, coronal = volume[z], volume[:, y]
    for axis, plane, aspect, name in (
        (axes[0], axial, spacing[1] / spacing[2], "axial"),
        (axes[1], coronal, spacing[0] / spacing[2], "coronal"),
    ):
        axis.imshow(
            plane[:, ::-1], cmap="gray", vmin=0, vmax=1, origin="lower", aspect=aspect
        )  # the patient's right on the left
        axis.set_title(f"{title}, {name}", fontsize=9)
        axis.axis("off")


def pair_figure(
    query: np.ndarray, key: np.ndarray, spacing: tuple[float, float, float], titles: tuple[str, str]
) -> Figure:
    """A matched pair of crops, (C, D, H, W) each, side by side."""
    figure = Figure(figsize=(8, 8), layout="constrained")
    for row, crop, title in zip(figure.subplots(2, 2), (query, key), titles):
        show_planes(row, crop[0], spacing, title)
    return figure


def reconstruct(
    crop: torch.Tensor, predicted: torch.Tensor, masked: torch.Tensor, unit: Triple
) -> tuple[np.ndarray, np.ndarray]:
    """The crop with hidden tokens grey, and with hidden tokens as predicted.

    crop: (C, D, H, W); predicted: (N, C * unit voxels), normalised per token: mean and deviation of the true token are
    put back, so the picture shows structure, not brightness, as MAE's pictures do; masked: (N,).
    """
    tokens = patchify(crop[None].float(), unit)  # (1, N, voxels)
    variance, mean = torch.var_mean(tokens, dim=-1, keepdim=True)
    filled = predicted[None].float() * (variance + 1e-6).sqrt() + mean
    grid = tuple(n // u for n, u in zip(crop.shape[1:], unit))
    hide = lambda values: (
        unpatchify(torch.where(masked[None, :, None], values, tokens), grid, unit)[0].cpu().numpy()
    )
    return hide(torch.full_like(tokens, 0.5)), hide(filled)


def reconstruction_figure(
    crop: torch.Tensor,
    predicted: torch.Tensor,
    masked: torch.Tensor,
    unit: Triple,
    spacing: tuple[float, float, float],
) -> Figure:
    """Crop, masked crop and reconstruction under each other. Shapes as in reconstruct."""
    hidden, filled = reconstruct(crop, predicted, masked, unit)
    figure = Figure(figsize=(8, 11), layout="constrained")
    titles = (
        "crop",
        f"seen by the encoder ({1 - masked.float().mean().item():.0%})",
        "hidden part reconstructed",
    )
    for row, volume, title in zip(
        figure.subplots(3, 2), (crop.float().cpu().numpy(), hidden, filled), titles
    ):
        show_planes(row, volume[0], spacing, title)
    return figure


def prediction_figure(
    image: np.ndarray,
    predicted: np.ndarray,
    reference: np.ndarray,
    spacing: tuple[float, float, float],
    names: list[str],
) -> Figure:
    """Prediction and reference over the CT, in the axial and the coronal slice with most reference voxels.

    image: (Z, Y, X) canonical RAS, 0 to 1. predicted, reference: (Z, Y, X), 0 background, 1 .. len(names).
    """
    inside = reference > 0
    planes = (
        ("axial", spacing[1] / spacing[2], lambda v: v[inside.sum((1, 2)).argmax()]),
        ("coronal", spacing[0] / spacing[2], lambda v: v[:, inside.sum((0, 2)).argmax()]),
    )
    figure, colours = Figure(figsize=(11, 9), layout="constrained"), matplotlib.colormaps["tab10"]
    for row, (title, labels) in zip(
        figure.subplots(2, 2), (("prediction", predicted), ("reference", reference))
    ):
        for axis, (name, aspect, cut) in zip(row, planes):
            style = {"origin": "lower", "aspect": aspect}
            axis.imshow(cut(image)[:, ::-1], cmap="gray", vmin=0, vmax=1, **style)
            axis.imshow(
                np.ma.masked_equal(cut(labels), 0)[:, ::-1],
                cmap=colours,
                vmin=0,
                vmax=9,
                alpha=0.5,
                interpolation="nearest",
                **style,
            )
            axis.set_title(f"{title}, {name}", fontsize=10)
            axis.axis("off")
    figure.legend(
        handles=[Patch(color=colours(i + 1), label=name) for i, name in enumerate(names)],
        loc="outside lower center",
        ncols=len(names),
    )
    return figure


def mark_points(
    axes,
    volume: np.ndarray,
    spacing: tuple[float, float, float],
    points: np.ndarray,
    title: str,
    start: int = 1,
) -> None:
    """Numbered points over the axial and the coronal slice through the first of them, upright as in show_planes.

    points: (P, 3) voxels (z, y, x); those of another slice are drawn where they project to. start: number of the first.
    """
    first = np.clip(points[0].astype(int), 0, np.array(volume.shape) - 1)
    colours = matplotlib.colormaps["tab10"]
    for axis, plane, row, aspect, name in (
        (axes[0], volume[first[0]], 1, spacing[1] / spacing[2], "axial"),
        (axes[1], volume[:, first[1]], 0, spacing[0] / spacing[2], "coronal"),
    ):
        axis.imshow(plane[:, ::-1], cmap="gray", vmin=0, vmax=1, origin="lower", aspect=aspect)
        for number, point in enumerate(points, start):
            across, up = volume.shape[2] - 1 - point[2], point[row]
            axis.plot(
                across,
                up,
                "o",
                color=colours((number - 1) % 10),
                markersize=5,
                markeredgecolor="white",
            )
            axis.annotate(
                str(number),
                (across, up),
                color=colours((number - 1) % 10),
                fontsize=9,
                xytext=(3, 3),
                textcoords="offset points",
            )
        axis.set_title(f"{title}, {name}", fontsize=9)
        axis.axis("off")


def patches_figure(
    first: np.ndarray, second: np.ndarray, places: np.ndarray, others: np.ndarray, case: str
) -> Figure:
    """Two augmented patches (D, H, W) of one volume and some points that both show: the same number, the same place.

    places, others: (P, 3) of the points in each, -1 and 1 are the patch's edges. Voxels are cubes.
    """
    figure = Figure(figsize=(8, 8), layout="constrained")
    some = np.linspace(0, len(places) - 1, min(6, len(places))).astype(int)
    for row, patch, at, title in zip(
        figure.subplots(2, 2), (first, second), (places, others), ("one patch", "another")
    ):
        mark_points(
            row, patch, (1, 1, 1), (at[some] + 1) / 2 * patch.shape - 0.5, f"{case}, {title}"
        )
    return figure


def matches_figure(
    query: np.ndarray,
    key: np.ndarray,
    points: np.ndarray,
    matches: np.ndarray,
    scores: list[float],
    spacing: tuple[float, float, float],
    titles: tuple[str, str],
) -> Figure:
    """Points of one volume and their matches in another, (Z, Y, X) each; a row of slices for every point, with its score.

    points, matches: (P, 3) voxels.
    """
    figure = Figure(figsize=(12, 3.2 * len(points)), layout="constrained")
    rows = figure.subplots(len(points), 4, squeeze=False)
    for number, (row, point, match, score) in enumerate(zip(rows, points, matches, scores), 1):
        mark_points(row[:2], query, spacing, point[None], titles[0], number)
        mark_points(row[2:], key, spacing, match[None], f"{titles[1]}, score {score:.2f}", number)
    return figure
