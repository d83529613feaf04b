"""Launching a kernel again without what Triton does to find it, where Python is slower than the GPU.

Triton binds, specializes and looks up every argument of every launch. Here a launch is known by its arguments
as Triton would see them, only finer: whole numbers by their values, tensors by their dtype and by where they
stand to 16 bytes. The first launch of a kind goes Triton's way and gives the compiled kernel; later ones
call it. Nothing is kept of the tensors themselves: no pointer is remembered.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from qvgen.fused.switch import INTERPRETED

_KNOWN = ("3", "6")  # Triton whose compiled kernels are called as it is done here
_MOST = 4096  # kinds of launches that are remembered
_ALIGNED = 16


class Described:
    """A matrix that tiles of ``box`` are moved of by the copy engine: Triton's descriptor before its checks.

    Attributes:
        base: the matrix.
        box: rows and columns of a tile.
        layout: of the tile in shared memory, for Gluon's kernels; None for Triton's.
        shape: of ``base``.
        strides: likewise.
    """

    __slots__ = ("base", "box", "layout", "shape", "strides")
    padding = "zero"

    def __init__(self, base: Tensor, box: tuple[int, int], layout: Any = None) -> None:
        self.base, self.box, self.layout = base, box, layout
        self.shape, self.strides = base.shape, base.stride()

    def checked(self) -> Any:
        """Triton's own descriptor, which refuses what the copy engine cannot move."""
        if self.layout is None:
            from triton.tools.tensor_descriptor import TensorDescriptor as Plain

            return Plain(self.base, list(self.shape), list(self.strides), list(self.box))
        from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

        return TensorDescriptor(self.base, list(self.shape), list(self.strides), list(self.box), self.layout)


class _Known(NamedTuple):
    """A compiled kernel and what it is called with beside the operands."""

    kernel: Any  # held, so that no other one gets its id
    run: Callable[..., None]
    function: Any
    metadata: Any
    constants: tuple[Any, ...]


def launch(
    kernel: Any, programs: int, operands: tuple[Any, ...], on: Tensor, facts: tuple[Any, ...],
    constants: Callable[[], dict[str, Any]],
) -> None:  # fmt: skip
    """Run ``programs`` programs of ``kernel`` on the device of ``on``.

    Args:
        kernel: a jitted function whose constants come after its operands.
        programs: how many.
        operands: tensors, matrices that are ``Described``, numbers.
        on: any tensor of the device.
        facts: what ``constants`` depend on; hashable.
        constants: gives the kernel's constants, and Triton's options, by name.
    """
    index = on.get_device()
    if index >= 0 and index != torch.cuda.current_device():
        with torch.cuda.device(index):
            launch(kernel, programs, operands, on, facts, constants)
        return
    if not repeats():
        _first(kernel, programs, operands, constants())
        return
    kinds = (id(kernel), index, facts, *_kinds(operands))
    known = _launches().get(kinds)
    if known is None or _is_watched():
        named = constants()
        compiled = _first(kernel, programs, operands, named)
        if known is None and compiled is not None:
            if len(_launches()) >= _MOST:
                _launches().clear()
            # Operands stand first; behind them every parameter is a constant.
            order = tuple(named[name] for name in kernel.arg_names[len(operands) :])
            _launches()[kinds] = _Known(
                kernel, compiled.run, compiled.function, compiled.packed_metadata, order
            )
        return
    driver = _driver().active
    stream = driver.get_current_stream(index if index >= 0 else driver.get_current_device())
    known.run(
        programs, 1, 1, stream, known.function, known.metadata, None, None, None, *operands, *known.constants
    )


def _first(kernel: Any, programs: int, operands: tuple[Any, ...], constants: dict[str, Any]) -> Any:
    checked = [each.checked() if type(each) is Described else each for each in operands]
    return kernel[(programs,)](*checked, **constants)


def _kinds(operands: tuple[Any, ...]) -> Iterator[Any]:
    """Operands as a kernel may have been made for them."""
    for operand in operands:
        if isinstance(operand, Tensor):
            yield operand.dtype, operand.data_ptr() % _ALIGNED
        elif isinstance(operand, int):
            yield operand
        elif isinstance(operand, Described):
            base = operand.base
            yield base.dtype, base.data_ptr() % _ALIGNED, operand.box, operand.strides
        else:
            yield type(operand)


@cache
def repeats() -> bool:
    """Whether launches are: if ``QVGEN_RELAUNCH`` is 1, with the Triton that this was written for.

    Not by default: it rests on what Triton does not promise, and what it gains on a GPU has not been timed.
    The variable is read once, at the first launch.
    """
    if INTERPRETED or os.environ.get("QVGEN_RELAUNCH") != "1":
        return False
    version: str = importlib.import_module("triton").__version__
    return version.split(".")[:2] == list(_KNOWN)


@cache
def _launches() -> dict[tuple[Any, ...], _Known]:
    """What is known in this process."""
    return {}


@cache
def _hooks() -> Any:
    return importlib.import_module("triton").knobs.runtime


def _is_watched() -> bool:
    """Whether somebody, a profiler, wants to be told of launches, as only Triton tells."""
    hooks = _hooks()
    return bool(hooks.launch_enter_hook.calls or hooks.launch_exit_hook.calls)


@cache
def _driver() -> Any:
    return importlib.import_module("triton.runtime").driver
