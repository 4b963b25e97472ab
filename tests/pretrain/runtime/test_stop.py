import multiprocessing
import os
import signal

import pytest

from alice_nnunet.pretrain.runtime.stop import StopRequest, exit_code, ignore_signals


@pytest.mark.parametrize(
    "number, code", [(signal.SIGTERM, 75), (signal.SIGUSR1, 75), (signal.SIGINT, 130)]
)
def test_a_signal_is_noted_and_the_handlers_come_back(number, code):
    before = signal.getsignal(number)
    with StopRequest() as stop:
        assert stop.number == 0
        os.kill(os.getpid(), number)
        assert stop.number == number and exit_code(stop.number) == code
    assert signal.getsignal(number) is before


def test_a_second_ctrl_c_interrupts_at_once():
    with pytest.raises(KeyboardInterrupt), StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.number == signal.SIGINT
        os.kill(os.getpid(), signal.SIGINT)


def load_until_told(ready, done) -> None:
    ignore_signals(0)
    ready.set()
    done.wait()


def test_a_loading_process_outlives_a_signal_to_all():
    context = multiprocessing.get_context("fork")
    ready, done = context.Event(), context.Event()
    worker = context.Process(target=load_until_told, args=(ready, done))
    worker.start()
    ready.wait()
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        os.kill(worker.pid, number)

    done.set()
    worker.join()
    assert worker.exitcode == 0  # not that of a signal
