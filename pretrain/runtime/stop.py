"""SIGTERM, SIGUSR1 and Ctrl-C let a run finish its step and save."""

import signal

from alice_nnunet.pretrain.runtime.distributed import stop_signals

TRY_AGAIN = 75  # EX_TEMPFAIL of sysexits.h: nothing is wrong, run it again


class StopRequest:
    """Inside, the first such signal is noted in number and nothing more; a second Ctrl-C interrupts at once."""

    def __init__(self):
        self.number = 0

    def __enter__(self) -> "StopRequest":
        self.earlier = {number: signal.signal(number, self.note) for number in stop_signals()}
        return self

    def note(self, number: int, frame) -> None:
        if self.number == number == signal.SIGINT:
            raise KeyboardInterrupt
        self.number = number

    def __exit__(self, *error) -> None:
        for number, handler in self.earlier.items():
            signal.signal(number, handler)


def ignore_signals(worker: int) -> None:
    """For a process that loads data: whoever signals all processes of a run leaves it to the run when to end it."""
    for number in stop_signals():
        signal.signal(number, signal.SIG_IGN)


def exit_code(number: int) -> int:
    """Of a run that was stopped by a signal and has saved: 130 for Ctrl-C, as everywhere, else TRY_AGAIN."""
    return 130 if number == signal.SIGINT else TRY_AGAIN
