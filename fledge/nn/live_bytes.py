"""How many bytes of tensors are alive at once, counted exactly and whatever the allocator does."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# operations that hold a copy of their operand while they run
COPIES_ITS_OPERAND = frozenset({torch.ops.aten.logsumexp.default})


class LiveBytes(TorchDispatchMode):
    """Inside a `with`: `now` and `peak` count the bytes of all storages that operations made and that still live.

    Storages that existed before count if they are given to `add`. Of
    temporaries inside one operation only those of COPIES_ITS_OPERAND are seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.known: set[int] = set()

    def add(self, *tensors: torch.Tensor) -> None:
        """Count the storages of `tensors`, once each, until they are freed."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            key, size = storage._cdata, storage.nbytes()
            if key in self.known or not size:
                continue
            self.known.add(key)
            self.now += size
            weakref.finalize(storage, self.freed, key, size)
        self.peak = max(self.peak, self.now)

    def freed(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in COPIES_ITS_OPERAND:
            self.peak = max(self.peak, self.now + args[0].nbytes)
        self.add(*(leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)))
        return result
