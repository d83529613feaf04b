"""Models of full size, and what is alive in a call of theirs on the meta device."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from evalharness.modeloptions import ModelOptions
from evalharness.registry import Registry


def model(name: str, **options: Any) -> Any:
    return Registry().get("models", name)(ModelOptions(**options))


class Alive(TorchDispatchMode):
    """The most bytes of tensors alive at a time, of those made within; ``known``: storages that were not."""

    def __init__(self, known: Collection[int] = ()) -> None:
        super().__init__()
        self.known = known
        self.sizes: dict[int, tuple[StorageWeakRef, int]] = {}
        self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, tuple | list) else [made]:
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata in self.known:
                    continue
                self.sizes[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self.sizes = {key: row for key, row in self.sizes.items() if not row[0].expired()}
        self.most = max(self.most, sum(size for _, size in self.sizes.values()))
        return made


class NoAttention(TorchFunctionMode):
    """Attention as kernels do it: its output, and no matrix of all pairs of tokens."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.nn.functional.scaled_dot_product_attention:
            return torch.empty_like(args[0] if args else kwargs["query"])
        return func(*args, **(kwargs or {}))
