import math

import pytest
import torch
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler

from alice_nnunet.schedules import EpochSchedule, ema_momentum, warmup_cosine, warmup_poly


def test_warmup_then_cosine_to_zero():
    values = [warmup_cosine(step, 100, 10, 0.5) for step in range(100)]
    assert values[:10] == pytest.approx([0.05 * (i + 1) for i in range(10)])
    assert values[10] == pytest.approx(0.5) and values[-1] == pytest.approx(0, abs=1e-12)
    assert values[10:] == sorted(values[10:], reverse=True)
    assert values[10 + 30] == pytest.approx(0.25 * (1 + math.cos(math.pi * 30 / 89)))


def test_no_warmup_and_a_final_value():
    assert warmup_cosine(0, 10, 0, 1.0, 0.1) == 1.0
    assert warmup_cosine(9, 10, 0, 1.0, 0.1) == pytest.approx(0.1)
    assert warmup_cosine(0, 1, 0, 1.0) == 1.0


def test_warmup_then_the_decay_of_nnunet():
    values = [warmup_poly(epoch, 100, 10, 0.01) for epoch in range(100)]
    assert values[:10] == pytest.approx([0.001 * (i + 1) for i in range(10)])

    parameter = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.SGD([parameter], 0.01)
    nnunets = PolyLRScheduler(optimizer, 0.01, 90)
    for epoch in range(90):
        nnunets.step(epoch)
        assert values[10 + epoch] == pytest.approx(optimizer.param_groups[0]["lr"])

    with pytest.raises(ValueError, match="shorter than the run"):
        warmup_poly(0, 10, 10, 1.0)


def test_a_warmup_as_long_as_the_run_is_refused():
    with pytest.raises(ValueError, match="shorter than the run"):
        warmup_cosine(0, 10, 10, 1.0)


def test_momentum_goes_from_its_start_to_one():
    assert ema_momentum(0, 100, 0.996) == pytest.approx(0.996)
    assert ema_momentum(100, 100, 0.996) == 1
    assert ema_momentum(50, 100, 0.996) == pytest.approx(0.998)


@pytest.mark.filterwarnings("error")
def test_epoch_schedule_sets_the_rate_of_the_epoch_it_is_told():
    parameters = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    optimizer = torch.optim.AdamW([{"params": [p]} for p in parameters], lr=9.0)
    schedule = EpochSchedule(optimizer, [lambda epoch: 10.0 - epoch, lambda epoch: 1.0 + epoch])
    assert [group["lr"] for group in optimizer.param_groups] == [10.0, 1.0]

    for epoch in (0, 1, 7):  # nnU-Net steps before the epoch, and goes on from any
        schedule.step(epoch)
        rates = [group["lr"] for group in optimizer.param_groups]
        assert rates == schedule.get_last_lr() == [10.0 - epoch, 1.0 + epoch]
