"""What a GB is in this package, and how the memory of tensors is counted."""

import weakref
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

GB = 1e9  # bytes. Decimal, as on data sheets; nvidia-smi prints MiB, of which 1 GB has 954


class Ledger(TorchDispatchMode):
    """Count the bytes of the storages that operations inside the block create.

    Attributes:
        now: bytes of the storages that are alive.
        peak: the most bytes that were alive at one time.
    """

    def __init__(self):
        super().__init__()
        self.now = 0
        self.peak = 0
        self.known: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def __torch_dispatch__(self, operation, types, arguments=(), keywords=None):
        result = operation(*arguments, **(keywords or {}))
        self.count(leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor))
        return result

    def count(self, tensors: Iterable[Tensor]) -> None:
        """Add the storages of tensors that are not counted yet."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            if storage in self.known:
                continue

            self.known.add(storage)
            self.now += storage.nbytes()
            weakref.finalize(storage, self.forget, storage.nbytes())

        self.peak = max(self.peak, self.now)

    def forget(self, size: int) -> None:
        """Subtract a storage of size bytes, which was freed."""
        self.now -= size
