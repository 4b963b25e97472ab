"""Call one function for many cases, in several processes or in the present one."""

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection, get_context, parent_process
from signal import SIG_DFL, SIGINT, signal
from typing import TypeVar

from alice_nnunet.errors import UserError

Name = TypeVar("Name")
Result = TypeVar("Result")


def run_each(
    function: Callable[..., Result], jobs: dict[Name, tuple], processes: int
) -> Iterator[tuple[Name, Result]]:
    """Yield (name, function(*arguments)) for every job, in the order in which they finish.

    Args:
        function: importable, because processes are spawned.
        jobs: name -> arguments.
        processes: number of processes; 1 works in the present one.

    Raises:
        UserError: a process was killed.
    """
    processes = min(processes, len(jobs))

    if processes <= 1:
        for name, arguments in jobs.items():
            yield name, function(*arguments)
        return

    with ProcessPoolExecutor(processes, get_context("spawn"), start_worker) as pool:
        try:
            futures = {pool.submit(function, *arguments): name for name, arguments in jobs.items()}
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BrokenProcessPool:
            raise UserError(
                f"one of {processes} processes was killed, probably because memory ran out: "
                f"run the command again with -np {processes // 2}; finished cases are kept"
            ) from None
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def start_worker() -> None:
    """Prepare a new process: it ends silently on Ctrl-C, and when its parent ends or is killed."""
    signal(SIGINT, SIG_DFL)
    threading.Thread(target=end_with_parent, daemon=True).start()


def end_with_parent() -> None:
    """Wait for the end of the parent process, then end this one."""
    parent = parent_process()
    assert parent is not None  # this is a started process
    connection.wait([parent.sentinel])
    os._exit(1)
