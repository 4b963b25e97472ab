"""DSC and NSD of every organ as boxes over cases."""

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from alice_nnunet.evaluation.summary import METRICS, Scores, values_of

GROUP_WIDTH = 0.7  # of the boxes of one organ side by side; organs are 1 apart
BOX_WIDTH = 0.85  # of a box over the space that it has
DOT_SPREAD = 0.2  # of the dots to either side, over the space that a box has


def box_plot(scores: dict[str, Scores]) -> Figure:
    """Boxes over cases for every organ: median, quartiles, whiskers, and each case as a dot.

    Whiskers end at 1.5 times the distance of the quartiles.

    Args:
        scores: folder of predictions -> its scores; several folders are side by side.
    """
    organs = list(values_of(next(iter(scores.values())), "dsc"))
    width = max(6.0, 1.5 + 0.7 * len(organs) * (1 + len(scores)) / 2)  # inches
    figure = Figure(figsize=(width, 9), layout="constrained")

    for axis, metric in zip(figure.subplots(2, 1, sharex=True), METRICS):
        for number, (folder, of_folder) in enumerate(scores.items()):
            draw_boxes(axis, values_of(of_folder, metric), number, len(scores), folder)
        axis.set_ylabel(f"{metric.upper()}, %")
        axis.set_ylim(-3, 103)
        axis.grid(axis="y", alpha=0.4)
        axis.axvline(len(organs) - 1.5, color="grey", linewidth=1)  # before the mean over organs

    axis.set_xticks(range(len(organs)), organs, rotation=40, ha="right")
    axis.set_xlim(-0.6, len(organs) - 0.4)
    if len(scores) > 1:
        figure.legend(*axis.get_legend_handles_labels(), loc="outside upper center", ncols=1)
    return figure


def draw_boxes(
    axis: Axes, values: dict[str, np.ndarray], number: int, folders: int, name: str
) -> None:
    """Draw the boxes of one folder of predictions.

    Args:
        axis: to draw on.
        values: organ -> (cases,), 0 to 1, NaN where a case does not count.
        number: of the folder, from 0.
        folders: how many are side by side.
        name: of the folder, for the legend.
    """
    width = GROUP_WIDTH / folders
    colour = colormaps["tab10"](number)
    places = np.arange(len(values)) + (number - (folders - 1) / 2) * width
    known = [100 * v[~np.isnan(v)] for v in values.values()]

    drawn = axis.boxplot(
        known,
        positions=places,
        widths=BOX_WIDTH * width,
        patch_artist=True,
        showfliers=False,
        manage_ticks=False,
        medianprops={"color": "black"},
    )
    for box in drawn["boxes"]:
        box.set(facecolor=colour, alpha=0.4)
    drawn["boxes"][0].set_label(name)

    rng = np.random.default_rng(0)
    for place, dots in zip(places, known):
        beside = rng.uniform(-DOT_SPREAD, DOT_SPREAD, len(dots)) * width
        axis.plot(place + beside, dots, ".", color=colour, markersize=4, alpha=0.8)
