"""DSC and NSD of every organ as boxes over cases."""

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

from alice_nnunet.evaluation.summary import METRICS, Scores, values_of


def box_plot(scores: dict[str, Scores]) -> Figure:
    """Median, quartiles, whiskers at 1.5 times their distance, and every case as a dot. scores: of each folder of predictions."""
    organs = list(values_of(next(iter(scores.values())), "dsc"))
    figure = Figure(
        figsize=(max(6.0, 1.5 + 0.7 * len(organs) * (1 + len(scores)) / 2), 9), layout="constrained"
    )
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


def draw_boxes(axis, values: dict[str, np.ndarray], number: int, of: int, name: str) -> None:
    """The boxes of one folder of predictions, the number-th of so many side by side."""
    width, colour = 0.7 / of, colormaps["tab10"](number)
    places = np.arange(len(values)) + (number - (of - 1) / 2) * width
    known = [100 * v[~np.isnan(v)] for v in values.values()]
    drawn = axis.boxplot(
        known,
        positions=places,
        widths=0.85 * width,
        patch_artist=True,
        showfliers=False,
        manage_ticks=False,
        medianprops={"color": "black"},
    )
    for box in drawn["boxes"]:
        box.set(facecolor=colour, alpha=0.4)
    spread = np.random.default_rng(0)
    for place, dots in zip(places, known):
        axis.plot(
            place + spread.uniform(-0.2, 0.2, len(dots)) * width,
            dots,
            ".",
            color=colour,
            markersize=4,
            alpha=0.8,
        )
    drawn["boxes"][0].set_label(name)
