"""Batches from processes that load them, and what is reported when one of these ends."""

import multiprocessing
from collections.abc import Generator, Sequence
from multiprocessing import connection
from typing import Any, Protocol

from torch.utils.data import DataLoader, Dataset

from alice_nnunet.errors import UserError
from alice_nnunet.pretrain.runtime.stop import ignore_signals
from alice_nnunet.workers import started

SECONDS_TO_END = 2.0  # for a process that broke its connection


class Batched(Protocol):
    """Data whose items are read a batch at a time."""

    def batch(self, indices: Sequence[int]) -> Any: ...


class Batches(Dataset):
    """Item n is the batch of the indices shares[n].

    An exception that says what is wrong with the data takes the batch's place: raised in a process
    of a DataLoader, its message would come wrapped in a traceback.
    """

    def __init__(self, data: Batched, shares: Sequence[Sequence[int]]):
        self.data = data
        self.shares = shares

    def __len__(self) -> int:
        return len(self.shares)

    def __getitem__(self, number: int) -> Any:
        try:
            return self.data.batch(self.shares[number])
        except UserError as error:
            return error


def batches(
    data: Batched, shares: Sequence[Sequence[int]], workers: int = 0, pin_memory: bool = False
) -> Generator[Any, None, None]:
    """Load one batch for each of shares.

    Close the iterator (contextlib.closing) where not all batches are taken: the loading processes
    ignore the signals that would end them, and Python waits for them.

    Args:
        data: Where batches are read from.
        shares: The indices of the items of each batch.
        workers: Processes that load, 0 for this one.
        pin_memory: Put batches into pinned memory, from which a GPU copies faster.

    Raises:
        UserError: Data are missing or damaged, or a loading process has ended.
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
        # A process that ended shows as some broken connection, and only its sentinel tells.
        explained = isinstance(error, (UserError, KeyboardInterrupt))
        sentinels = [process.sentinel for process in processes]
        ended = bool(sentinels) and not explained and connection.wait(sentinels, SECONDS_TO_END)

        for process in processes:
            process.kill()
        if ended:
            raise worker_ended(error, workers) from error
        raise


def worker_ended(error: BaseException, workers: int) -> UserError:
    """The error to report where a loading process has ended.

    Args:
        error: What it caused in this process; of a broken connection it may say nothing.
        workers: Number of loading processes.
    """
    reason = f"{type(error).__name__}: {error}".splitlines()[0]
    return UserError(
        f"one of {workers} processes that load data has ended ({reason}). If something killed it, "
        "the memory, or the shared memory (/dev/shm; docker run --shm-size), has probably run out. "
        f"Resume with fewer of them (alice-pretrain --c --set workers={workers // 2}, "
        f"alice-embed -np {workers // 2})"
    )
