"""SIGTERM, SIGUSR1 and Ctrl-C let a training finish its step and save."""

import signal

TRY_AGAIN = 75  # EX_TEMPFAIL of sysexits.h: nothing is wrong, run it again
INTERRUPTED = 130  # as shells report Ctrl-C


def stop_signals() -> list[int]:
    """The signals that ask a run to save and end, on this system."""
    names = ("SIGTERM", "SIGUSR1", "SIGINT")
    return [getattr(signal, name) for name in names if hasattr(signal, name)]


class StopRequest:
    """Inside, the first such signal is noted in number and does nothing more.

    A second Ctrl-C interrupts at once.
    """

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
    """Leave it to the run to end this process, which loads data, where a signal reaches both."""
    for number in stop_signals():
        signal.signal(number, signal.SIG_IGN)


def exit_code(number: int) -> int:
    """The code of a run that was stopped by a signal and has saved."""
    return INTERRUPTED if number == signal.SIGINT else TRY_AGAIN
