"""A command that gets a signal in one of its steps, and waits until it has arrived.

    stopping alice-pretrain 5 SIGTERM -d 31 ...

It is one of the programs of warm_commands, and can be started by Python, too. The step is the one
after so many. Of several processes the first signals their launcher, which passes it on.
"""

import os
import signal
import sys
import time

from alice_nnunet.pretrain.commands import embed, pretrain
from alice_nnunet.pretrain.embedding.run import EmbedRun
from alice_nnunet.pretrain.runtime import distributed
from alice_nnunet.pretrain.runtime.stop import StopRequest
from alice_nnunet.pretrain.training.run import Run

COMMANDS = {"alice-pretrain": (pretrain.main, Run), "alice-embed": (embed.main, EmbedRun)}


def words(program: list[str], command: str, step: int, number: int) -> list[str]:
    """The words that start a command to be stopped, in the place of its own name.

    Args:
        program: The words that start this one.
        command: To be stopped.
        step: In which it gets the signal, counted from 0.
        number: Of the signal.
    """
    return [*program, command, str(step), signal.Signals(number).name]


def send_in_step(training: type, step: int, number: int) -> None:
    """Let a step of a training (Run or EmbedRun) send the signal before it starts."""
    take_step = training.take_step
    note = StopRequest.note
    noted = []

    def note_it(self, number, frame) -> None:
        noted.append(number)
        note(self, number, frame)

    def take_step_with_signal(self, batch):
        if self.state.step == step and os.environ.get("RANK", "0") == "0":
            os.kill(os.getppid() if distributed.launched() else os.getpid(), number)
            while not noted:
                time.sleep(0.01)
        return take_step(self, batch)

    StopRequest.note = note_it
    training.take_step = take_step_with_signal


def command() -> None:
    name, step, signal_name, *arguments = sys.argv[1:]
    main, training = COMMANDS[name]
    number = signal.Signals[signal_name]
    send_in_step(training, int(step), number)
    distributed.PROGRAM = words([sys.executable, __file__], name, int(step), number)
    main(arguments)


if __name__ == "__main__":
    command()
