"""Lines in nnU-Net's manner on screen and in training_log.txt, progress.png, TensorBoard."""

from datetime import datetime, timedelta
from pathlib import Path

from matplotlib.figure import Figure
from torch.utils.tensorboard import SummaryWriter

from alice_nnunet.pictures import save_figure

PANELS = {  # of progress.png
    "losses": ("l_r", "l_dv", "l_st", "validation l_r", "validation l_dv", "validation l_st"),
    "spread (under 0.1: collapse)": ("spread cls", "spread S", "spread T"),
    "seconds per step": ("step time", "data time"),
}


class RunLog:
    """The log of one run in folder. step: where it starts; later TensorBoard entries of an interrupted run are dropped.

    panels: title -> names of the curves of progress.png.
    """

    def __init__(self, folder: Path, step: int, panels: dict[str, tuple[str, ...]] = PANELS):
        self.folder, self.panels = folder, panels
        self.board = SummaryWriter(str(folder), purge_step=step)

    def line(self, text: str) -> None:
        """One line with the time in front."""
        line = f"{datetime.now()}: {text}"
        print(line, flush=True)
        with open(self.folder / "training_log.txt", "a") as file:
            file.write(line + "\n")

    def scalars(self, step: int, values: dict[str, float], history: dict[str, list]) -> None:
        """Add values at step to TensorBoard and to history, {name: [[step, value], ...]}."""
        for name, value in values.items():
            self.board.add_scalar(name.replace(" ", "/", 1), value, step)
            history.setdefault(name, []).append([step, value])

    def picture(self, step: int, name: str, figure: Figure) -> None:
        """Show figure in TensorBoard and write it to folder/name.png."""
        save_figure(figure, self.folder / f"{name}.png")
        self.board.add_figure(name, figure, step)

    def progress(self, history: dict[str, list]) -> None:
        """Draw progress.png."""
        figure = Figure(figsize=(10, 12), layout="constrained")
        for axes, (title, names) in zip(figure.subplots(len(self.panels), 1), self.panels.items()):
            for name in names:
                if name in history:
                    axes.plot(*zip(*history[name]), label=name, linestyle="--" if name.startswith("validation") else "-")
            axes.set(title=title, xlabel="step")
            axes.grid(alpha=0.3)
            axes.legend(loc="best")
        save_figure(figure, self.folder / "progress.png")

    def close(self) -> None:
        self.board.close()


def time_left(seconds: float) -> str:
    """3725.2 -> '1:02:05'."""
    return str(timedelta(seconds=round(seconds)))
