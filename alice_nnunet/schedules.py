"""Schedules as functions of the step or epoch. They store nothing: resuming needs only the step."""

import math
from collections.abc import Callable

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler


def warmup_cosine(step: int, steps: int, warmup: int, peak: float, final: float = 0.0) -> float:
    """Linear warm-up, then half a cosine (Alice, Sec. 4.2).

    Args:
        step: 0 <= step < steps.
        steps: length of the run.
        warmup: steps from peak / warmup to peak.
        peak: highest value.
        final: value at the last step.

    Raises:
        ValueError: the warm-up leaves no step for the cosine.
    """
    check_warmup(warmup, steps)
    if step < warmup:
        return peak * (step + 1) / warmup

    progress = (step - warmup) / max(1, steps - 1 - warmup)
    return final + (peak - final) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def warmup_poly(step: int, steps: int, warmup: int, peak: float, exponent: float = 0.9) -> float:
    """Linear warm-up, then nnU-Net's polynomial decay (Alice, Table 8).

    The decay is peak * (1 - progress) ** exponent. It would reach 0 at step = steps.

    Args:
        step: 0 <= step < steps.
        steps: length of the run.
        warmup: steps from peak / warmup to peak.
        peak: highest value.
        exponent: of the decay.

    Raises:
        ValueError: the warm-up leaves no step for the decay.
    """
    check_warmup(warmup, steps)
    if step < warmup:
        return peak * (step + 1) / warmup

    progress = (step - warmup) / (steps - warmup)
    return peak * (1 - progress) ** exponent


def check_warmup(warmup: int, steps: int) -> None:
    """Raise ValueError if the warm-up is not shorter than the run."""
    if not 0 <= warmup < steps:
        raise ValueError(f"the warm-up must be shorter than the run, got {warmup} of {steps} steps")


def ema_momentum(step: int, steps: int, start: float) -> float:
    """Momentum of the target: half a cosine from `start` to 1 (BYOL; Alice prints no schedule)."""
    return 1 - (1 - start) * 0.5 * (1 + math.cos(math.pi * step / steps))


class EpochSchedule(LRScheduler):
    """Learning rates as functions of the epoch, as a scheduler that is told the epoch.

    nnU-Net's trainer steps its own schedulers in this way.

    Args:
        optimizer: starts with the rates of epoch 0.
        rates: for each parameter group a function from the epoch, counted from 0, to the rate.
    """

    def __init__(self, optimizer: Optimizer, rates: list[Callable[[int], float]]):
        self.rates = rates
        super().__init__(optimizer)

    def step(self, epoch: int | None = None) -> None:
        """Give every parameter group its learning rate of `epoch`, by default 0."""
        self._last_lr = [rate_at(epoch or 0) for rate_at in self.rates]
        for group, rate in zip(self.optimizer.param_groups, self._last_lr, strict=True):
            group["lr"] = rate
