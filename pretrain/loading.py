"""Batches of aligned pairs from processes that load them, and what is said when one of these ends."""

from collections.abc import Iterator, Sequence

from torch.utils.data import DataLoader

from alice_nnunet.data.pairs import AlignedPairs, PairBatches
from alice_nnunet.errors import UserError
from alice_nnunet.pretrain.stop import ignore_signals

PATIENCE = 1800.0  # seconds that a batch may take in a process that loads


def pair_batches(pairs: AlignedPairs, shares: Sequence[Sequence[int]], workers: int = 0, pin_memory: bool = False) -> Iterator[dict]:
    """One batch for each of shares, the numbers of its pairs. workers: processes that load, 0 for this one.

    Raises UserError where data are missing or damaged, NoMatch where nothing matches.
    """
    loader = DataLoader(PairBatches(pairs, shares), batch_size=None, num_workers=workers, pin_memory=pin_memory,
                        timeout=PATIENCE if workers else 0, worker_init_fn=ignore_signals)
    for batch in loader:
        if isinstance(batch, Exception):
            raise batch
        yield batch


def is_loader_death(error: RuntimeError) -> bool:
    """Whether DataLoader raised it because one of its processes ended or does not answer. It may come up anywhere in this process."""
    return "DataLoader worker" in str(error) or "DataLoader timed out" in str(error)


def loader_death(error: RuntimeError, workers: int) -> UserError:
    """What the user should know of it."""
    return UserError(f"one of {workers} processes that load data has ended or does not answer ({str(error).splitlines()[0]}). If something killed it, "
                     f"the memory, or the shared memory (/dev/shm; docker run --shm-size), has probably run out: go on with --c and "
                     f"fewer of them, --set workers={workers // 2}; if it does not answer, see whether the disk does")
