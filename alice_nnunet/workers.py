"""Call one function for many cases, in several processes or in the present one; show how far."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection, get_context, parent_process
from typing import TYPE_CHECKING, Any, TypeVar

from tqdm import tqdm

from alice_nnunet.errors import UserError
from alice_nnunet.text import duration

if TYPE_CHECKING:
    from torch.utils.data import DataLoader

SECONDS_BETWEEN_LINES = 20.0  # of progress that goes to a file

Name = TypeVar("Name")
Result = TypeVar("Result")


def with_progress(
    results: Iterable[tuple[Name, Result]], verb: str, total: int
) -> Iterator[tuple[Name, Result]]:
    """Yield results and show how many there were, the last one's name and the time left.

    On a terminal that is a bar. Elsewhere, such as in a file, it is a line after the first result,
    one every SECONDS_BETWEEN_LINES, and one after the last.

    Args:
        results: pairs of a name and anything.
        verb: what is done, such as "preprocessing".
        total: number of results.
    """
    if sys.stderr.isatty():
        with tqdm(results, verb, total, unit="case") as bar:
            for name, result in bar:
                yield name, result
                bar.set_postfix_str(shown_name(name))
        return

    started = time.monotonic()
    last_line = started
    for number, (name, result) in enumerate(results, 1):
        yield name, result

        now = time.monotonic()
        if number in (1, total) or now - last_line >= SECONDS_BETWEEN_LINES:
            left = duration((now - started) / number * (total - number))
            print(f"{verb} | {number} of {total} | {shown_name(name)} | left {left}", flush=True)
            last_line = now


def shown_name(name: Any) -> str:
    """The case, of a name that may also hold where it is from."""
    return str(name[-1] if isinstance(name, tuple) else name)


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
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    threading.Thread(target=end_with_parent, daemon=True).start()


def end_with_parent() -> None:
    """Wait for the end of the parent process, then end this one."""
    parent = parent_process()
    assert parent is not None  # this is a started process
    connection.wait([parent.sentinel])
    os._exit(1)


def started(loader: "DataLoader") -> Iterator:
    """iter(loader), without torch's handler of SIGCHLD.

    That handler raises wherever this process is, even in the middle of a file that it writes.
    DataLoader checks its processes every few seconds too, while it waits for them.
    """
    if not hasattr(signal, "SIGCHLD"):
        return iter(loader)

    earlier = signal.getsignal(signal.SIGCHLD)
    items = iter(loader)
    signal.signal(signal.SIGCHLD, earlier)
    return items
