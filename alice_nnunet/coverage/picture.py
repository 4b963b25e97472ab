"""A picture of what all scans of an index show."""

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from alice_nnunet.geometry import Spacing
from alice_nnunet.pictures import show_coronal

SHOWN_NAMES = 60  # scans, up to which they are named


def coverage_figure(
    scans: dict[str, dict], ends: list[tuple[str, np.ndarray, Spacing]], alone: int
) -> Figure:
    """Every scan as a bar along the axis of the body, groups side by side.

    Args:
        scans: Name -> "group", "start_mm", "stop_mm", "matched_places" (0 to 1), of the scans that
            lie on an axis.
        ends: Name, coronal slice (Z, X) and spacing of the scans at the lower and the upper end of
            the axis of the largest group.
        alone: Number of scans that are not drawn because they match nobody, or too little.
    """
    figure = Figure(figsize=(12, 6), layout="constrained")
    pictures, bars = figure.subplots(1, 2, width_ratios=(1, 5))
    pictures.axis("off")

    def place(case: str) -> tuple:
        entry = scans[case]
        return entry["group"], entry["start_mm"] + entry["stop_mm"]

    order = sorted(scans, key=place)
    colours = matplotlib.colormaps["viridis"]
    group = 0
    for column, case in enumerate(order):
        entry = scans[case]
        height = entry["stop_mm"] - entry["start_mm"]
        colour = colours(entry["matched_places"])
        bars.bar(column, height, 0.9, entry["start_mm"], color=colour)
        if entry["group"] != group:
            bars.axvline(column - 0.5, color="black", linewidth=1)
            group = entry["group"]

    if len(order) <= SHOWN_NAMES:
        bars.set_xticks(range(len(order)), order, rotation=90, fontsize=7)
    bars.margins(0.02)
    bars.use_sticky_edges = False
    bars.set_ylabel("mm along the body, head up")
    bars.set_xlabel("scans; a line separates groups that share no place")
    bars.set_title(f"{len(scans)} scans; {alone} more match none, or too little", fontsize=10)
    shares = matplotlib.cm.ScalarMappable(matplotlib.colors.Normalize(0, 1), colours)
    figure.colorbar(shares, ax=bars, label="share of places that another scan shows")

    for number, (case, plane, spacing) in enumerate(ends):
        axis = pictures.inset_axes((0, 0.55 * number, 1, 0.42))
        show_coronal(axis, plane, spacing)
        end = "upper" if number else "lower"
        axis.set_title(f"{end} end: {case}", fontsize=8)
    return figure
