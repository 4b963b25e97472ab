import multiprocessing
import os
import signal
from contextlib import closing

import pytest
import torch

from alice_nnunet.errors import UserError
from alice_nnunet.pretrain.runtime.loading import Batches, batches, worker_ended

SHARES = [[0, 1], [5], [2, 3, 4]]


class Numbers:
    """The indices asked for; what = number of a share whose reading is a fault."""

    def __init__(self, fault=None):
        self.fault = fault

    def batch(self, indices) -> dict:
        if 5 in indices and self.fault:
            self.fault()
        return {"numbers": torch.tensor(indices), "process": os.getpid()}


def missing() -> None:
    raise UserError("a file is missing")


def mistaken() -> None:
    raise IndexError("a mistake of ours")


def killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def left() -> None:
    os._exit(3)


@pytest.fixture(autouse=True)
def nothing_is_left():
    # A DataLoader of an earlier test in this process may have left torch's handler, which raises.
    handler = signal.SIG_DFL
    signal.signal(signal.SIGCHLD, handler)
    yield
    assert signal.getsignal(signal.SIGCHLD) is handler
    for process in multiprocessing.active_children():
        process.join()


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_come_in_the_order_of_their_shares(workers):
    read = list(batches(Numbers(), SHARES, workers))
    assert [batch["numbers"].tolist() for batch in read] == SHARES
    assert len({batch["process"] for batch in read} - {os.getpid()}) == workers


@pytest.mark.parametrize("workers", [0, 2])
def test_what_is_wrong_with_the_data_comes_out_as_it_was_said(workers):
    read = batches(Numbers(missing), SHARES, workers)
    assert next(read)["numbers"].tolist() == [0, 1]
    with pytest.raises(UserError, match=r"^a file is missing$"):
        next(read)


def test_a_mistake_in_the_code_keeps_its_traceback():
    with pytest.raises(IndexError, match="a mistake of ours"):
        list(batches(Numbers(mistaken), SHARES, 2))


@pytest.mark.parametrize("fault", [killed, left])
def test_a_process_that_ends_is_a_users_error(fault):
    with pytest.raises(UserError, match=r"one of 2 processes that load data has ended .*workers=1"):
        list(batches(Numbers(fault), SHARES, 2))


def test_a_process_that_ends_disturbs_nothing_but_the_next_batch():
    with closing(batches(Numbers(), [[n] for n in range(1000)], 2)) as read:
        killed = next(read)["process"]
        os.kill(killed, signal.SIGKILL)
        for process in multiprocessing.active_children():
            if process.pid == killed:
                process.join()  # torch's handler of SIGCHLD would raise here
        with pytest.raises(UserError, match="has ended"):
            for _ in read:
                pass


def test_one_who_stops_early_leaves_no_process():
    with (
        pytest.raises(ZeroDivisionError),
        closing(batches(Numbers(), [[n] for n in range(1000)], 2)) as read,
    ):
        next(read)
        assert len(multiprocessing.active_children()) == 2
        raise ZeroDivisionError


def test_a_fault_is_an_item_and_the_others_come():
    items = Batches(Numbers(missing), SHARES)
    assert (
        len(items) == 3
        and isinstance(items[1], UserError)
        and items[2]["numbers"].tolist() == [2, 3, 4]
    )


def test_a_death_that_comes_with_an_empty_error_is_told_too():
    assert "one of 4 processes that load data has ended (EOFError: )" in str(
        worker_ended(EOFError(), 4)
    )
