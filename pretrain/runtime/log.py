"""Lines in nnU-Net's manner on screen and in training_log.txt, progress.png, TensorBoard."""

import os
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch.utils.tensorboard import SummaryWriter

from alice_nnunet.errors import UserError
from alice_nnunet.pictures import save_figure
from alice_nnunet.settings.reading import flatten
from alice_nnunet.text import duration

WANDB_ENABLED = "nnUNet_wandb_enabled"
FEW_VALUES = 20  # of a curve, which are marked one by one


# Name of a value -> group of its tag, where that is not the name's first word. TensorBoard and
# Weights & Biases show a group in one section.
GROUPS = {
    "gradient norm": "optimizer/gradient_norm",
    "lr": "optimizer/lr",
    "ema": "optimizer/ema",
    "rejection rate": "pairs/rejected",
    "unmatched rate": "pairs/unmatched",
    "content share": "pairs/content",
    "memory": "memory/GB",
    "step time": "time/step",
    "data time": "time/data",
    "retrieval": "probe/retrieval",
    "retrieval chance": "probe/retrieval_chance",
    "probe retrieval": "probe/organ_retrieval",
    "probe chance": "probe/organ_chance",
    "found": "found/training",
    "validation found": "found/validation",
    "loss": "loss/total",
}


def tag_of(name: str) -> str:
    """The tag of a value: "validation l_r" -> "loss/l_r_validation", "spread S" -> "spread/S"."""
    if name in GROUPS:
        return GROUPS[name]
    if name.startswith("validation "):
        return f"loss/{name.removeprefix('validation ')}_validation"
    if " " not in name:
        return f"loss/{name}"
    return name.replace(" ", "/", 1).replace(" ", "_")


class RunLog:
    """The log of one run in a folder."""

    def __init__(
        self,
        folder: Path,
        step: int,
        panels: dict[str, tuple[str, ...]],
        config: dict | None = None,
        thresholds: dict[str, float] | None = None,
    ):
        """Open the log.

        Args:
            folder: Where its files are.
            step: Where it starts; later TensorBoard entries of an interrupted run are dropped.
            panels: Title -> names of the curves, for each panel of progress.png.
            config: Settings of the run, sent to TensorBoard and Weights & Biases.
            thresholds: First word of a curve's name -> value under which the run warns.
        """
        self.folder = folder
        self.panels = panels
        self.config = config or {}
        self.thresholds = thresholds or {}
        self.last: dict[str, float] = {}  # of each value
        self.others = nnunet_loggers(folder, step > 0)
        for logger in self.others:
            logger.run.name = folder.name
            logger.update_config(self.config)
        self.board = SummaryWriter(str(folder), purge_step=step)

    def line(self, text: str) -> None:
        """Write one line with the time in front."""
        line = f"{datetime.now()}: {text}"
        print(line, flush=True)
        with (self.folder / "training_log.txt").open("a") as file:
            file.write(line + "\n")

    def scalars(self, step: int, values: dict[str, float], history: dict[str, list]) -> None:
        """Add values at step to TensorBoard and to history, {name: [[step, value], ...]}."""
        for name, value in values.items():
            tag = tag_of(name)
            self.board.add_scalar(tag, value, step)
            history.setdefault(name, []).append([step, value])
            for logger in self.others:
                logger.log(tag, value, step)
        self.last |= values

    def picture(self, step: int, name: str, figure: Figure) -> None:
        """Show a figure in TensorBoard and write it to folder/name.png."""
        save_figure(figure, self.folder / f"{name}.png")
        self.board.add_figure(name, figure, step)

    def progress(self, history: dict[str, list]) -> None:
        """Draw progress.png."""
        figure = progress_figure(self.panels, history, self.thresholds)
        save_figure(figure, self.folder / "progress.png")

    def close(self) -> None:
        """End the log: add the settings with the last values (HPARAMS), end the other loggers."""
        settings = {
            name: value if isinstance(value, (bool, int, float, str)) else str(value)
            for name, value in flatten(self.config, ()).items()
        }
        if settings and self.last:
            results = {f"hparam/{tag_of(name)}": value for name, value in self.last.items()}
            self.board.add_hparams(settings, results, run_name=".")
        self.board.close()

        # Another run in this process, such as the matcher's before a pretraining, is its own.
        for logger in self.others:
            logger.run.finish()


def progress_figure(
    panels: dict[str, tuple[str, ...]], history: dict[str, list], thresholds: dict[str, float]
) -> Figure:
    """The curves of a run, panel under panel; those without a curve are left out.

    Args:
        panels: Title -> names of the curves.
        history: Name -> [[step, value], ...].
        thresholds: First word of a curve's name -> value under which the run warns.
    """
    shown = {title: [name for name in names if name in history] for title, names in panels.items()}
    shown = {title: names for title, names in shown.items() if names}

    number = max(1, len(shown))
    figure = Figure(figsize=(10, 3.6 * number), layout="constrained")
    for axes, (title, names) in zip(figure.subplots(number, squeeze=False)[:, 0], shown.items()):
        axes.set_title(title, loc="left", fontsize=10)
        draw_panel(axes, {name: history[name] for name in names})

        threshold = thresholds.get(names[0].split()[0])
        if threshold is not None:
            axes.axhline(threshold, color="red", linewidth=1, linestyle=":", label="warning")
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), fontsize=9, frameon=False)
    return figure


def draw_panel(axes: Axes, curves: dict[str, list]) -> None:
    """Draw curves; one of held-out volumes has the colour of the training's."""
    colours: dict[str, Any] = {}
    for name, curve in curves.items():
        steps, values = zip(*curve)
        dashed = name.startswith("validation") or name.endswith("chance")
        (line,) = axes.plot(
            steps,
            values,
            label=name,
            linestyle="--" if dashed else "-",
            marker="o" if len(steps) <= FEW_VALUES else None,
            markersize=7 if dashed else 4,
            markerfacecolor="none" if dashed else None,  # a single value has no line
            color=colours.get(name.removeprefix("validation ").removesuffix(" chance")),
        )
        colours[name] = line.get_color()

    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)


def check_loggers() -> None:
    """Raise UserError where Weights & Biases is asked for and not installed."""
    asked = os.environ.get(WANDB_ENABLED, "0") in ("1", "True", "true")
    if asked and find_spec("wandb") is None:
        raise UserError(
            f"{WANDB_ENABLED}=1 asks for Weights & Biases, which is not installed: pip install "
            f"wandb, or unset {WANDB_ENABLED}"
        )


def nnunet_loggers(folder: Path, resume: bool) -> list:
    """What nnU-Net logs to beside its own files.

    That is Weights & Biases where nnUNet_wandb_enabled=1 asks for it, with nnUNet_wandb_project and
    nnUNet_wandb_mode.

    Raises:
        UserError: It is asked for and not installed.
    """
    from nnunetv2.training.logging.nnunet_logger import MetaLogger

    try:
        return MetaLogger(folder, resume).loggers
    except RuntimeError as error:
        raise UserError(f"{WANDB_ENABLED}={os.environ[WANDB_ENABLED]}: {error}") from None


def time_left(seconds: float) -> str:
    """3725.2 -> '1:02:05'."""
    return duration(seconds)
