"""Lines in nnU-Net's manner on screen and in training_log.txt, progress.png, TensorBoard."""

import os
import sys
from datetime import datetime, timedelta
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch.utils.tensorboard import SummaryWriter

from alice_nnunet.errors import UserError
from alice_nnunet.pictures import save_figure

try:
    import resource
except ImportError:  # Windows
    resource = None

PANELS = {  # of progress.png
    "losses": ("l_r", "l_dv", "l_st", "validation l_r", "validation l_dv", "validation l_st"),
    "spread (under 0.1: collapse)": ("spread cls", "spread S", "spread T"),
    "share of held-out crops that find their match": ("retrieval", "retrieval chance"),
    "seconds per step": ("step time", "data time"),
}


class RunLog:
    """The log of one run in folder. step: where it starts; later TensorBoard entries of an interrupted run are dropped.

    panels: title -> names of the curves of progress.png.
    """

    def __init__(self, folder: Path, step: int, panels: dict[str, tuple[str, ...]] = PANELS):
        self.folder, self.panels = folder, panels
        self.board = SummaryWriter(str(folder), purge_step=step)
        self.others = nnunet_loggers(folder, step > 0)

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
            for logger in self.others:
                logger.log(name, value, step)

    def picture(self, step: int, name: str, figure: Figure) -> None:
        """Show figure in TensorBoard and write it to folder/name.png."""
        save_figure(figure, self.folder / f"{name}.png")
        self.board.add_figure(name, figure, step)

    def progress(self, history: dict[str, list]) -> None:
        """Draw progress.png."""
        figure = Figure(figsize=(10, 4 * len(self.panels)), layout="constrained")
        for axes, (title, names) in zip(figure.subplots(len(self.panels), 1), self.panels.items()):
            for name in names:
                if name in history:
                    axes.plot(
                        *zip(*history[name]),
                        label=name,
                        linestyle="--"
                        if name.startswith("validation") or name.endswith("chance")
                        else "-",
                    )
            axes.set(title=title, xlabel="step")
            axes.grid(alpha=0.3)
            if axes.lines:
                axes.legend(loc="best")
        save_figure(figure, self.folder / "progress.png")

    def close(self) -> None:
        self.board.close()


def nnunet_loggers(folder: Path, resume: bool) -> list:
    """What nnU-Net logs to beside its own files: Weights & Biases where nnUNet_wandb_enabled=1 asks for it, with nnUNet_wandb_project
    and nnUNet_wandb_mode. Raises UserError where it is asked for and not installed."""
    from nnunetv2.training.logging.nnunet_logger import MetaLogger

    try:
        return MetaLogger(folder, resume).loggers
    except RuntimeError as error:
        raise UserError(
            f"nnUNet_wandb_enabled={os.environ['nnUNet_wandb_enabled']}: {error}"
        ) from None


def time_left(seconds: float) -> str:
    """3725.2 -> '1:02:05'."""
    return str(timedelta(seconds=round(seconds)))


def peak_memory(device: torch.device) -> float:
    """GB: the most that tensors took on a CUDA device so far, or that this process took on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, in bytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9 if resource else 0.0
