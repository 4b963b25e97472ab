"""Commands of alice-demo end together: none is left behind."""

import os
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from alice_nnunet.demo.running import Runner
from alice_nnunet.errors import UserError
from alice_nnunet.settings.options import usable_cores


class Witness:
    """A pipe that a command and all that it has started hold open."""

    def __init__(self, folder: Path):
        self.path = folder / "held"
        os.mkfifo(self.path)
        self.reader = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK)
        self.seen = b""

    def command(self, then: str) -> str:
        """A command that starts another one, says so, and goes on."""
        return f"sh -c 'exec 3>{self.path}; sleep 60 & echo x >&3; {then}'"

    def wait_for(self, commands: int) -> None:
        while self.seen.count(b"x") < commands:
            with suppress(BlockingIOError):
                self.seen += os.read(self.reader, 100)
            time.sleep(0.01)

    def nobody_is_left(self) -> bool:
        """Read the end of the pipe within ten seconds."""
        for _ in range(1000):
            with suppress(BlockingIOError):
                if not os.read(self.reader, 100):
                    return True
            time.sleep(0.01)
        return False


@pytest.fixture
def witness(tmp_path) -> Witness:
    return Witness(tmp_path)


def test_commands_run_at_the_same_time_and_are_noted(tmp_path, capsys):
    runner = Runner(tmp_path, {**os.environ, "VARIABLE": "from the runner"})
    first = f"sh -c 'until [ -e {tmp_path}/there ]; do sleep 0.01; done; echo $VARIABLE'"
    runner.call("Wait for each other", first, f"touch {tmp_path}/there")

    (step,) = runner.steps
    assert step.why == "Wait for each other" and len(step.commands) == 2
    assert f"  $ {first}\n" in capsys.readouterr().out
    logs = sorted((tmp_path / "logs").iterdir())
    assert [log.name for log in logs] == ["01_sh.txt", "02_touch.txt"]
    assert logs[0].read_text() == f"$ {first}\nfrom the runner\n"


def test_commands_at_the_same_time_share_the_cores(tmp_path):
    command = "sh -c 'echo threads $OMP_NUM_THREADS'"
    runner = Runner(tmp_path, {**os.environ, "OMP_NUM_THREADS": "7"})
    runner.call("Alone", command)
    runner.call("Together", *[command] * (usable_cores() + 1))

    alone, *together = [log.read_text() for log in sorted((tmp_path / "logs").iterdir())]
    assert "threads 7\n" in alone
    assert all("threads 1\n" in log for log in together)


def test_a_failure_shows_the_last_lines_and_ends_the_others(tmp_path, witness):
    failing = f"sh -c 'until [ -e {tmp_path}/ready ]; do sleep 0.01; done; seq 30; exit 3'"
    ready = f"touch {tmp_path}/ready; sleep 60"
    with pytest.raises(UserError) as failed:
        Runner(tmp_path, dict(os.environ)).call("Fail", failing, witness.command(ready))

    head, lines = str(failed.value).split("\nIts last lines ")
    assert head == f"this command ended with code 3: {failing}"
    assert lines.splitlines()[1:] == [str(number) for number in range(16, 31)]
    assert witness.nobody_is_left()


def test_what_a_failed_command_has_started_ends_with_it(tmp_path, witness):
    with pytest.raises(UserError):
        Runner(tmp_path, dict(os.environ)).call("Fail", witness.command("exit 1"))
    assert witness.nobody_is_left()


@pytest.mark.parametrize(
    "number, raised", [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)]
)
def test_ctrl_c_ends_all_commands_and_what_they_have_started(tmp_path, witness, number, raised):
    def interrupt() -> None:
        witness.wait_for(2)
        os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    threading.Thread(target=interrupt).start()
    with pytest.raises(raised):
        command = witness.command("sleep 60")
        Runner(tmp_path, dict(os.environ)).call("Sleep", command, command)

    assert witness.nobody_is_left()
    assert signal.getsignal(number) is before


def test_a_command_that_ignores_the_end_is_killed(tmp_path, witness, monkeypatch):
    monkeypatch.setattr("alice_nnunet.demo.running.SECONDS_TO_END", 0.1)
    stubborn = f"sh -c 'trap \"\" TERM; exec 3>{witness.path}; echo x >&3; sleep 60'"
    fails_later = f"sh -c 'until [ -e {tmp_path}/go ]; do sleep 0.01; done; exit 1'"

    def go() -> None:
        witness.wait_for(1)
        (tmp_path / "go").touch()

    threading.Thread(target=go).start()
    with pytest.raises(UserError):
        Runner(tmp_path, dict(os.environ)).call("Fail", stubborn, fails_later)
    assert witness.nobody_is_left()
