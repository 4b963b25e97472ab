"""Batches from processes that load them, and what is said when one of these ends."""

import multiprocessing
import signal
from collections.abc import Iterator, Sequence
from multiprocessing import connection
from typing import Protocol

from torch.utils.data import DataLoader, Dataset

from alice_nnunet.data.pairs import NoMatch
from alice_nnunet.errors import UserError
from alice_nnunet.pretrain.runtime.stop import ignore_signals

PATIENCE = 2.0  # seconds in which a process that broke its connection has ended


class Batched(Protocol):
    """What batches are read from."""

    def batch(self, indices: Sequence[int]) -> dict: ...


class Batches(Dataset):
    """Item n is the batch of the indices shares[n], or the exception that says what is wrong with the data: DataLoader would wrap
    its message in a traceback."""

    def __init__(self, data: Batched, shares: Sequence[Sequence[int]]):
        self.data, self.shares = data, shares

    def __len__(self) -> int:
        return len(self.shares)

    def __getitem__(self, number: int) -> dict | UserError | NoMatch:
        try:
            return self.data.batch(self.shares[number])
        except (UserError, NoMatch) as error:
            return error


def batches(
    data: Batched, shares: Sequence[Sequence[int]], workers: int = 0, pin_memory: bool = False
) -> Iterator[dict]:
    """One batch for each of shares, the indices of its items. workers: processes that load, 0 for this one.

    Who does not take all of them must close it (contextlib.closing): the processes ignore the signals that would end them, and
    Python waits for them. Raises UserError where data are missing or damaged, or a process has ended; NoMatch where nothing matches.
    """
    loader = DataLoader(
        Batches(data, shares),
        batch_size=None,
        num_workers=workers,
        pin_memory=pin_memory,
        worker_init_fn=ignore_signals,
    )
    others = multiprocessing.active_children()
    items = started(loader)
    processes = [p for p in multiprocessing.active_children() if p not in others]
    try:
        for item in items:
            if isinstance(item, Exception):
                raise item
            yield item
    except (Exception, KeyboardInterrupt) as error:
        known = not processes or isinstance(error, (UserError, NoMatch, KeyboardInterrupt))
        died = not known and connection.wait([p.sentinel for p in processes], PATIENCE)
        for process in processes:
            process.kill()
        if died:
            raise death(error, workers) from error
        raise


def started(loader: DataLoader) -> Iterator:
    """iter(loader) without torch's handler of SIGCHLD, which raises wherever this process is, and be it in the middle of a file that
    it writes. DataLoader looks after its processes every few seconds too, while it waits for them."""
    if not hasattr(signal, "SIGCHLD"):
        return iter(loader)
    earlier = signal.getsignal(signal.SIGCHLD)
    items = iter(loader)
    signal.signal(signal.SIGCHLD, earlier)
    return items


def death(error: Exception, workers: int) -> UserError:
    """What the user should know of it. error: what came of it here; of a broken connection it may say nothing."""
    reason = f"{type(error).__name__}: {error}".splitlines()[0]
    return UserError(
        f"one of {workers} processes that load data has ended ({reason}). If something killed it, the memory, "
        f"or the shared memory (/dev/shm; docker run --shm-size), has probably run out: go on with fewer of them "
        f"(alice-pretrain --c --set workers={workers // 2}, alice-embed -np {workers // 2})"
    )
