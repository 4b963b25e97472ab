"""The loop under alice-pretrain and alice-embed: load a batch, take a step, do what is due."""

import json
import signal
import time
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from alice_nnunet.names import FINAL, LATEST
from alice_nnunet.pretrain.runtime.log import RunLog
from alice_nnunet.pretrain.runtime.stop import StopRequest

NONFINITE_CASES = "nonfinite_cases.jsonl"


class NonFiniteLoss(RuntimeError):
    """The loss or its gradient was not finite for too many steps in a row."""


@dataclass(frozen=True)
class Schedule:
    """The length of a training, and every how many steps what is done. 0: never."""

    steps: int
    log_every: int
    validate_every: int
    save_every: int
    probe_every: int = 0
    max_nonfinite: int = 5  # skipped steps in a row that end the training

    def due(self, every: int, step: int) -> bool:
        """Whether something is due after so many steps. After the last one everything is."""
        return every > 0 and (step % every == 0 or step == self.steps)


@dataclass(kw_only=True)
class TrainingState:
    """What changes from step to step, beside the weights.

    Attributes:
        optimizer: Holds the moments of the weights.
        device: Where the weights are.
        step: Steps done. Every random number of a step comes from (seed, step).
        nonfinite: How many of the last steps, in a row, were skipped.
        history: Name -> [[step, value], ...], as logged.
    """

    optimizer: torch.optim.AdamW
    device: torch.device
    step: int = 0
    nonfinite: int = 0
    history: dict[str, list] = field(default_factory=dict)

    def count_step(self, finite: bool) -> None:
        """Count a step, done or, where it was not finite, skipped."""
        self.step += 1
        self.nonfinite = 0 if finite else self.nonfinite + 1


class StepResult(Protocol):
    """What a step computed. Tensors are still on the device."""

    @property
    def loss(self) -> Tensor: ...

    @property
    def gradient_norm(self) -> Tensor: ...

    @property
    def finite(self) -> bool:
        """False where the step was skipped."""

    def scalars(self) -> dict[str, Tensor]:
        """What is averaged over steps and logged, by its name in the log."""


class Training(Protocol):
    """What run_steps() drives: its state, its data, and what to do when."""

    folder: Path  # of the results
    how_to_resume: str  # for the user whose run was stopped

    @property
    def state(self) -> TrainingState: ...

    @property
    def schedule(self) -> Schedule: ...

    def training_batches(self) -> Generator[Any, None, None]:
        """The batches from the present step to the last."""

    def take_step(self, batch: Any) -> StepResult:
        """One step; it counts itself in the state. One that is not finite changes nothing else."""

    def cases_of(self, batch: Any) -> dict[str, list]:
        """The cases of a batch, of all processes, as NONFINITE_CASES lists them."""

    def agree_to_stop(self, number: int) -> int:
        """The signal by which all processes stop, given that of this one; 0: none."""

    def report(self, log: RunLog, means: dict[str, float]) -> None:
        """Log the means of the steps since the last report."""

    def probe(self, log: RunLog) -> None:
        """Log a measure of the features, on held-out cases."""

    def validate(self, log: RunLog) -> None:
        """Log the losses on held-out cases."""

    def save(self, path: Path) -> None:
        """Write a checkpoint."""


def run_steps(training: Training, log: RunLog | None) -> int:
    """Take the steps from the present one to the last, and do after each what is due.

    SIGTERM, SIGUSR1 and Ctrl-C let the step end, save, and stop the training.

    Args:
        training: What to train.
        log: None in a process that only computes; the one with a log validates and saves for all.

    Returns:
        0 at the end, or the number of the signal that stopped the training before it.

    Raises:
        NonFiniteLoss: Too many steps in a row were skipped.
        UserError: The data cannot be read, or the checkpoint cannot be written.
    """
    state = training.state
    steps = training.schedule.steps
    recent: list[dict] = []  # scalars of the steps since the last report

    with StopRequest() as stop, closing(training.training_batches()) as batches:
        while state.step < steps:
            start = time.perf_counter()
            batch = next(batches)
            loaded = time.perf_counter()
            result = training.take_step(batch)

            if result.finite:
                times = {"data time": loaded - start, "step time": time.perf_counter() - start}
                recent.append(result.scalars() | times)
            else:
                note_nonfinite(training, log, batch, result)

            stopped_by = training.agree_to_stop(stop.number)
            if log:
                follow_up(training, log, recent, stopped_by)
            if stopped_by and state.step < steps:
                return stopped_by

    return 0


def follow_up(training: Training, log: RunLog, recent: list[dict], stopped_by: int) -> None:
    """After a step, do what is due: report, probe, validate, save. A signal leaves no time for all.

    Args:
        training: What is trained.
        log: Where it is logged.
        recent: Scalars of the steps since the last report; emptied by a report.
        stopped_by: The signal that stops the training now, or 0.
    """
    schedule = training.schedule
    step = training.state.step
    last = step == schedule.steps

    if recent and schedule.due(schedule.log_every, step):
        training.report(log, means_of(recent))
        recent.clear()

    if schedule.due(schedule.probe_every, step) and not stopped_by:
        training.probe(log)

    if schedule.due(schedule.validate_every, step) and not stopped_by:
        training.validate(log)
        log.progress(training.state.history)  # takes half a second, in which all processes wait

    if last:
        training.save(training.folder / FINAL)
        (training.folder / LATEST).unlink(missing_ok=True)
        log.line(f"finished after {step} steps: {training.folder / FINAL}")
    elif stopped_by:
        training.save(training.folder / LATEST)
        name = signal.Signals(stopped_by).name
        log.line(f"stopped by {name} after step {step}, which is saved. {training.how_to_resume}")
    elif schedule.due(schedule.save_every, step):
        training.save(training.folder / LATEST)


def means_of(recent: list[dict]) -> dict[str, float]:
    """The mean of each scalar over the steps."""
    return {
        name: float(np.mean([float(scalars[name]) for scalars in recent])) for name in recent[0]
    }


def note_nonfinite(training: Training, log: RunLog | None, batch: Any, result: StepResult) -> None:
    """Write down the cases of a skipped step.

    Raises:
        NonFiniteLoss: It was one too many in a row.
    """
    cases = training.cases_of(batch)  # all processes must ask, as they exchange them
    step = training.state.step - 1
    file = training.folder / NONFINITE_CASES
    loss = result.loss.item()
    norm = result.gradient_norm.item()

    if log:
        entry = {"step": step, "loss": str(loss), "gradient norm": str(norm), **cases}
        with file.open("a") as lines:
            lines.write(json.dumps(entry) + "\n")
        log.line(
            f"WARNING: step {step} was skipped: loss {loss}, gradient norm {norm}. "
            f"Its cases are in {file}"
        )

    if training.state.nonfinite >= training.schedule.max_nonfinite:
        raise NonFiniteLoss(
            f"{training.state.nonfinite} steps in a row were skipped, the last with loss {loss} "
            f"and gradient norm {norm}. Their cases are in {file}: check these volumes"
        )
