"""Blocks whose parameters take another form while they work: on the device, or in float32."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from qvgen.training.sharding import blocks


class VisitingBlock:
    """Gives a block's parameters their working form before its forward pass and drops that after it.

    Args:
        block: whose parameters keep the data that they have now.
        made: the working form of one.
    """

    def __init__(self, block: nn.Module, made: Callable[[Tensor], Tensor]) -> None:
        self._made = made
        self._resting = [(parameter, parameter.data) for parameter in block.parameters()]
        self._hooks = (
            block.register_forward_pre_hook(self._bring),
            block.register_forward_hook(self._drop, always_call=True),
        )

    def remove(self) -> None:
        """Take the hooks away."""
        for hook in self._hooks:
            hook.remove()

    def _bring(self, *_: Any) -> None:
        for parameter, rest in self._resting:
            parameter.data = self._made(rest)

    def _drop(self, *_: Any) -> None:
        for parameter, rest in self._resting:
            parameter.data = rest


@contextmanager
def float32_by_blocks(model: nn.Module) -> Iterator[None]:
    """Within it ``model`` answers as ``model.float()`` does, to the bit, one block in float32 at a time.

    What is in no block is float32 all the while; buffers stay so.
    """
    for buffer in model.buffers():
        if buffer.is_floating_point():
            buffer.data = _float32(buffer.data)
    visiting = list(blocks(model))
    inside = {id(parameter) for block in visiting for parameter in block.parameters()}
    rest = [(p, p.data) for p in model.parameters() if id(p) not in inside]
    with ExitStack() as undo:
        for block in visiting:
            undo.callback(VisitingBlock(block, _float32).remove)
        try:
            for parameter, value in rest:
                parameter.data = _float32(value)
            yield
        finally:
            for parameter, value in rest:
                parameter.data = value


def _float32(value: Tensor) -> Tensor:
    return value.to(torch.float32) if value.is_floating_point() else value
