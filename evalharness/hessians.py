"""Sums of x x^T of many layers: on the device while all of them fit a budget, else at rest on the host.

At rest a sum comes to the device now and then, for what has gathered since: the rows of inputs, which
are far smaller than their products. It takes them in one by one in the order they came in, so its bits do not
depend on the budget.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = ["Grams", "budget_of"]

_ROWS_AT_ONCE = 4096
_SHARE_OF_FREE = 4


def budget_of(device: torch.device) -> int | None:
    """Bytes of the device that Hessians may take: a quarter of what is free; None: no limit, on the host."""
    import torch

    if device.type != "cuda":
        return None
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # free, to this process
    return (int(torch.cuda.mem_get_info(device)[0]) + kept) // _SHARE_OF_FREE


class Grams:
    """Sums of x x^T by layer.

    Args:
        widths: inputs of each layer.
        budget: bytes of the device for sums, or for the rows that wait for one; None: no limit. At
            least two sums of the widest layer and one call's rows are taken.

    Attributes:
        at_rest: whether sums lie on the host.
    """

    def __init__(self, widths: Mapping[str, int], budget: int | None) -> None:
        sizes = [4 * width * width for width in widths.values()]
        self.at_rest = budget is not None and sum(sizes) > budget
        self._room = 0 if budget is None else budget - 2 * max(sizes, default=0)
        self._sums: dict[str, Tensor] = {}
        self._waiting: dict[str, list[Tensor]] = {}
        self._counted: dict[int, int] = {}
        self._last: tuple[Tensor, Tensor] | None = None

    def add(self, name: str, rows: Tensor) -> None:
        """Take in rows [n, C] of a call; layers that share an input give the same tensor in succession."""
        if not self.at_rest:
            if name not in self._sums:
                self._sums[name] = _nothing(rows)
            if self._last is None or self._last[0] is not rows:
                self._last = (rows, product(rows))
            self._sums[name] += self._last[1]
            return
        self._waiting.setdefault(name, []).append(rows)
        self._counted[id(rows)] = rows.numel() * rows.element_size()

    def make_room(self) -> None:
        """Between two inputs: bring what waits into the sums if it is more than the budget allows."""
        self._last = None
        if self.at_rest and sum(self._counted.values()) > self._room:
            self.settle()

    def settle(self) -> None:
        """Bring what waits into the sums."""
        for name in list(self._waiting):
            rows = self._waiting.pop(name)
            known = self._sums.get(name)
            total = _nothing(rows[0]) if known is None else _brought(known, rows[0].device)
            for part in rows:
                total += product(part)
            self._sums[name] = _rested(total)
        self._counted.clear()

    def mean(self, name: str, count: int, device: torch.device) -> Tensor | None:
        """The sum over ``count``, where it lies; computed on ``device``. It is given away."""
        self.settle()
        self._last = None
        total = self._sums.pop(name, None)
        if total is None or not self.at_rest:
            return None if total is None else total / count
        return _rested(_brought(total, device) / count)


def _rested(total: Tensor) -> Tensor:
    return total.cpu()


def _brought(total: Tensor, device: torch.device) -> Tensor:
    return total.to(device)


def _nothing(rows: Tensor) -> Tensor:
    import torch

    return torch.zeros(rows.shape[1], rows.shape[1], device=rows.device)


def product(rows: Tensor) -> Tensor:
    """Sum of x x^T over rows [n, C], float32 [C, C]."""
    gram = _nothing(rows)
    for part in rows.split(_ROWS_AT_ONCE):
        exact = part.float()
        gram.addmm_(exact.T, exact)
    return gram
