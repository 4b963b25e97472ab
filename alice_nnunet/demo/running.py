"""Run commands, one or several at the same time, and leave none behind."""

import os
import shlex
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from alice_nnunet.errors import UserError
from alice_nnunet.settings.options import usable_cores

LINES_OF_A_FAILURE = 15  # of the log, shown when a command fails
SECONDS_TO_END = 5.0  # that a command has after SIGTERM
SECONDS_BETWEEN_LOOKS = 0.05
ENDING = (signal.SIGTERM, signal.SIGHUP)  # Ctrl-C raises by itself


@dataclass(frozen=True)
class Step:
    """What ran at the same time.

    Attributes:
        why: the reason, as printed.
        commands: command lines.
        seconds: by the clock.
        cpu_seconds: of the cores, of all processes that have ended.
    """

    why: str
    commands: list[str]
    seconds: float
    cpu_seconds: float


@dataclass(frozen=True)
class Running:
    """A command that was started.

    Attributes:
        command: its line.
        process: leads a process group of its own.
        log: file of all that it prints.
    """

    command: str
    process: subprocess.Popen
    log: Path


class Runner:
    """Runs commands in one folder.

    Attributes:
        folder: in which they run; their logs are in logs/.
        environment: their variables.
        steps: what was run so far.
    """

    def __init__(self, folder: Path, environment: dict[str, str]):
        self.folder = folder
        self.environment = environment
        self.steps: list[Step] = []

    def call(self, why: str, *commands: str) -> None:
        """Print the reason, and run the commands at the same time.

        When one fails, or this process is told to end, all that run are ended.

        Raises:
            UserError: a command failed; with its last lines.
        """
        print("\n" + "\n  $ ".join([why, *commands]), flush=True)
        started = time.monotonic()
        cpu_before = cpu_seconds_of_children()

        running: list[Running] = []
        with ending_raises():
            try:
                for command in commands:
                    running.append(self.start(command, number=len(commands)))
                wait(running)
            except BaseException:
                end(running)
                raise

        seconds = time.monotonic() - started
        cpu_seconds = cpu_seconds_of_children() - cpu_before
        self.steps.append(Step(why, list(commands), round(seconds, 1), round(cpu_seconds, 1)))
        print(f"  done in {seconds:.0f} s", flush=True)

    def start(self, command: str, number: int) -> Running:
        """Start one of a number of commands, which share the cores."""
        logs = self.folder / "logs"
        logs.mkdir(exist_ok=True)
        words = shlex.split(command)
        log = logs / f"{len(list(logs.iterdir())) + 1:02d}_{words[0]}.txt"

        with log.open("w") as file:
            file.write(f"$ {command}\n")
            file.flush()
            process = subprocess.Popen(
                words,
                env={**self.environment, **threads_of(number)},
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return Running(command, process, log)


def threads_of(number: int) -> dict[str, str]:
    """Variables of each of a number of commands: its part of the cores, if it is not alone."""
    if number == 1:
        return {}
    return {"OMP_NUM_THREADS": str(max(1, usable_cores() // number))}


def wait(running: list[Running]) -> None:
    """Wait until all have ended, or one has failed, which is a UserError with its last lines."""
    while True:
        codes = [one.process.poll() for one in running]
        for one, code in zip(running, codes):
            if code:
                raise UserError(
                    f"this command ended with code {code}: {one.command}\n"
                    f"Its last lines ({one.log} has all):\n" + last_lines(one.log)
                )

        if None not in codes:
            return
        time.sleep(SECONDS_BETWEEN_LOOKS)


def last_lines(log: Path) -> str:
    """The end of what a command has printed, without the line that it was started with."""
    lines = log.read_text(errors="replace").splitlines()[1:]
    return "\n".join("\n".join(lines).strip().splitlines()[-LINES_OF_A_FAILURE:])


def end(running: list[Running]) -> None:
    """End all that still run, and all that any of them has started."""
    for one in running:
        send(one, signal.SIGTERM)

    deadline = time.monotonic() + SECONDS_TO_END
    try:
        for one in running:
            with suppress(subprocess.TimeoutExpired):
                one.process.wait(max(0.0, deadline - time.monotonic()))
    finally:
        for one in running:
            send(one, signal.SIGKILL)


def send(one: Running, number: signal.Signals) -> None:
    """Send a signal to a command and all that it has started, if any of them is left."""
    with suppress(ProcessLookupError):
        os.killpg(one.process.pid, number)


@contextmanager
def ending_raises() -> Iterator[None]:
    """Inside the block, signals that would end this process raise SystemExit: it can clean up."""

    def leave(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    taken = [number for number in ENDING if signal.getsignal(number) == signal.SIG_DFL]
    for number in taken:
        signal.signal(number, leave)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)


def cpu_seconds_of_children() -> float:
    """Of all processes that this one has started, directly or not, and that have ended."""
    times = os.times()
    return times.children_user + times.children_system
