"""Lines in nnU-Net's manner on screen and in training_log.txt, progress.png, TensorBoard."""

import os
from datetime import datetime, timedelta
from pathlib import Path

from matplotlib.figure import Figure
from torch.utils.tensorboard import SummaryWriter

from alice_nnunet.errors import UserError
from alice_nnunet.pictures import save_figure


class RunLog:
    """The log of one run in a folder."""

    def __init__(self, folder: Path, step: int, panels: dict[str, tuple[str, ...]]):
        """Open the log.

        Args:
            folder: Where its files are.
            step: Where it starts; later TensorBoard entries of an interrupted run are dropped.
            panels: Title -> names of the curves, for each panel of progress.png.
        """
        self.folder = folder
        self.panels = panels
        self.board = SummaryWriter(str(folder), purge_step=step)
        self.others = nnunet_loggers(folder, step > 0)

    def line(self, text: str) -> None:
        """Write one line with the time in front."""
        line = f"{datetime.now()}: {text}"
        print(line, flush=True)
        with (self.folder / "training_log.txt").open("a") as file:
            file.write(line + "\n")

    def scalars(self, step: int, values: dict[str, float], history: dict[str, list]) -> None:
        """Add values at step to TensorBoard and to history, {name: [[step, value], ...]}."""
        for name, value in values.items():
            self.board.add_scalar(name.replace(" ", "/", 1), value, step)
            history.setdefault(name, []).append([step, value])
            for logger in self.others:
                logger.log(name, value, step)

    def picture(self, step: int, name: str, figure: Figure) -> None:
        """Show a figure in TensorBoard and write it to folder/name.png."""
        save_figure(figure, self.folder / f"{name}.png")
        self.board.add_figure(name, figure, step)

    def progress(self, history: dict[str, list]) -> None:
        """Draw progress.png."""
        figure = Figure(figsize=(10, 4 * len(self.panels)), layout="constrained")

        for axes, (title, names) in zip(figure.subplots(len(self.panels), 1), self.panels.items()):
            for name in names:
                if name not in history:
                    continue
                steps, values = zip(*history[name])
                dashed = name.startswith("validation") or name.endswith("chance")
                axes.plot(steps, values, label=name, linestyle="--" if dashed else "-")

            axes.set(title=title, xlabel="step")
            axes.grid(alpha=0.3)
            if axes.lines:
                axes.legend(loc="best")

        save_figure(figure, self.folder / "progress.png")

    def close(self) -> None:
        self.board.close()


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
        setting = os.environ["nnUNet_wandb_enabled"]  # noqa: SIM112  nnU-Net spells it so
        raise UserError(f"nnUNet_wandb_enabled={setting}: {error}") from None


def time_left(seconds: float) -> str:
    """3725.2 -> '1:02:05'."""
    return str(timedelta(seconds=round(seconds)))
