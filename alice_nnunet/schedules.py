"""Schedules are functions of the step (or epoch): nothing is stored, so going on needs only the step."""

import math
from collections.abc import Callable

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler


def warmup_cosine(step: int, steps: int, warmup: int, peak: float, final: float = 0.0) -> float:
    """Linear from peak / warmup to peak over warmup steps, then half a cosine to final at the last step (Alice, Sec. 4.2).

    step: 0 <= step < steps. Raises ValueError where the warm-up leaves no step for the cosine.
    """
    if not 0 <= warmup < steps:
        raise ValueError(f"the warm-up must be shorter than the run, got {warmup} of {steps} steps")
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - 1 - warmup)
    return final + (peak - final) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def warmup_poly(step: int, steps: int, warmup: int, peak: float, exponent: float = 0.9) -> float:
    """Linear from peak / warmup to peak over warmup steps, then peak * (1 - share of the rest done) ** exponent, as
    nnU-Net decays; 0 would be reached at step steps (Alice, Table 8).

    step: 0 <= step < steps. Raises ValueError where the warm-up leaves no step for the decay.
    """
    if not 0 <= warmup < steps:
        raise ValueError(f"the warm-up must be shorter than the run, got {warmup} of {steps} steps")
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * (1 - (step - warmup) / (steps - warmup)) ** exponent


def ema_momentum(step: int, steps: int, start: float) -> float:
    """Momentum of the target, half a cosine from start to 1 (BYOL; Alice does not print its own)."""
    return 1 - (1 - start) * 0.5 * (1 + math.cos(math.pi * step / steps))


class EpochSchedule(LRScheduler):
    """Functions of the epoch as a scheduler that is told the epoch, which is how nnU-Net's trainer steps its own."""

    def __init__(self, optimizer: Optimizer, rates: list[Callable[[int], float]]):
        """rates: for each parameter group, epoch, counted from 0 -> learning rate. The optimizer starts with those of epoch 0."""
        self.rates = rates
        super().__init__(optimizer)

    def step(self, epoch: int = 0) -> None:
        """Give every parameter group its learning rate of epoch."""
        self._last_lr = [rate_at(epoch) for rate_at in self.rates]
        for group, rate in zip(self.optimizer.param_groups, self._last_lr, strict=True):
            group["lr"] = rate
