"""Processes without the seconds in which each of them imports torch and nnU-Net.

A process that is "spawned" starts Python anew. Here Python's fork server starts it instead: a
process that has only imported (preloaded.py) and forks itself. As spawned ones, these processes
have nothing of their parent's but what is pickled, its folder, environment and output.
"""

import multiprocessing
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import context, forkserver, resource_tracker
from multiprocessing.reduction import DupFd
from pathlib import Path

from pytest import MonkeyPatch

REPOSITORY = Path(__file__).parents[2]
OUTPUTS = (1, 2)  # file descriptors
SERVER = forkserver._forkserver  # type: ignore[attr-defined]


class WarmProcess(context.ForkServerProcess):
    """A process of the fork server, with the environment and the output of its parent.

    The processes that it starts by default are spawned, as those of a spawned one are.
    """

    _start_method = "spawn"

    def __getstate__(self) -> dict:
        files = [DupFd(number) for number in OUTPUTS]
        return {**self.__dict__, "inherited": (dict(os.environ), files)}

    def __setstate__(self, state: dict) -> None:
        environment, files = state.pop("inherited")
        os.environ.clear()
        os.environ.update(environment)
        for number, file in zip(OUTPUTS, files):
            os.dup2(file.detach(), number)
        self.__dict__.update(state)

    @staticmethod
    def _Popen(process: multiprocessing.Process):
        start_fork_server()
        return context.ForkServerProcess._Popen(process)  # type: ignore[attr-defined]


class WarmContext(context.ForkServerContext):
    """What multiprocessing.get_context("spawn") gives instead of its own."""

    Process = WarmProcess


def start_command(
    main: Callable, words: list[str], environment: dict[str, str], output: Path
) -> WarmProcess:
    """Start a command whose process identity is to be known.

    Args:
        main: Of the command.
        words: That it is called with.
        environment: Its environment variables.
        output: File for what it prints.
    """
    process = WarmProcess(target=become, args=(main, words, environment, output))
    process.start()
    return process


def become(main: Callable, words: list[str], environment: dict[str, str], output: Path) -> None:
    """Be the command of start_command."""
    multiprocessing.set_start_method("fork", force=True)  # the default of a command
    os.environ.clear()
    os.environ.update(environment)
    with output.open("w") as file:
        for number in OUTPUTS:
            os.dup2(file.fileno(), number)
    main(words)


def start_fork_server() -> None:
    """Start it in the repository, where it finds tests/, unless it runs."""
    forkserver.set_forkserver_preload(["tests.helpers.preloaded"])
    folder = Path.cwd()
    os.chdir(REPOSITORY)
    try:
        SERVER.ensure_running()
    finally:
        os.chdir(folder)


@contextmanager
def warm_processes() -> Iterator[None]:
    """Inside, processes that are "spawned" by this process come from the fork server."""
    with MonkeyPatch.context() as patch:
        patch.setitem(context._concrete_contexts, "spawn", WarmContext())
        yield


def join_fork_server() -> None:
    """Let this process, which the fork server started, and its forks use the same server."""
    SERVER.ensure_running = resource_tracker.ensure_running
    context._concrete_contexts["spawn"] = WarmContext()  # type: ignore[attr-defined]
