"""A stack machine for the pickles that PyTorch writes. It makes containers and never calls anything.

Pickle's opcodes are known one by one; ``REDUCE`` and ``NEWOBJ``, the two that call what a file names,
compare the name with a short list and build plain data by our own code. Any other opcode, name or
argument is an error that says which.
"""

from __future__ import annotations

import io
import pickletools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from evalharness.errors import UserError
from evalharness.torchfiles.building import allowed, built, kind_of, made_module, outside
from evalharness.torchfiles.values import Module, Name, Storage, shown

__all__ = ["MAX_BYTES", "Pickle", "interpret"]

MAX_BYTES = 4 * 1024 * 1024
"""Longest pickle that is read: some 20 000 tensors. An opcode of one byte makes an object of up to 80."""


@dataclass(frozen=True, slots=True)
class Pickle:
    """What a pickle describes.

    Attributes:
        value: None, bool, int, float, str, list, dict and tuple, ``Module``, ``TensorView``, ``Storage``
            and ``Name``. Containers may share and even hold themselves.
        end: offset of the first byte after it.
        storages: those it refers to, by key; of several with one key the first.
    """

    value: object
    end: int
    storages: Mapping[str, Storage]


def interpret(data: bytes | memoryview, start: int = 0) -> Pickle:
    """What the pickle at ``start`` of ``data`` describes.

    Raises:
        ValueError: an opcode, a name or an argument that PyTorch's tensors do not need; or damage.
    """
    stream = io.BytesIO(data[start : start + MAX_BYTES])
    machine = _Machine()
    try:
        while not machine.stopped:
            machine.step(*_next(stream))
    except UserError:
        raise
    except (ValueError, OverflowError, EOFError) as error:
        cut = len(data) - start > MAX_BYTES and stream.tell() >= MAX_BYTES
        why = f"longer than {MAX_BYTES} bytes" if cut else shown(str(error))
        raise UserError(f"its pickle is damaged or cut short: {why}") from None
    return Pickle(machine.result(), start + stream.tell(), machine.storages)


def _next(stream: io.BytesIO) -> tuple[str, object]:
    """The next opcode and its argument, which is decoded only of opcodes that are known."""
    opcode = _OPCODES.get(stream.read(1))
    if opcode is None:
        raise UserError("its pickle is damaged or cut short: no opcode where there must be one")
    if opcode.name not in _LITERALS and opcode.name not in _CONSTANTS and opcode.name not in _STEPS:
        raise UserError(f"its pickle uses the opcode {opcode.name}, which no tensor needs; it is not read")
    if opcode.name == "GLOBAL":
        return opcode.name, Name(_line(stream), _line(stream))
    return opcode.name, None if opcode.arg is None else opcode.arg.reader(stream)


def _line(stream: io.BytesIO) -> str:
    line = stream.readline()
    if not line.endswith(b"\n"):
        raise ValueError("a name without its end")
    return line[:-1].decode("ascii")


class _Machine:
    def __init__(self) -> None:
        self.stopped = False
        self.stack: list[object] = []
        self.marked: list[list[object]] = []
        self.memo: dict[int, object] = {}
        self.storages: dict[str, Storage] = {}

    def step(self, opcode: str, argument: object) -> None:
        if opcode in _LITERALS:
            self.stack.append(argument)
        elif opcode in _CONSTANTS:
            self.stack.append(_CONSTANTS[opcode])
        else:
            _STEPS[opcode](self, argument)

    def result(self) -> object:
        value = self.pop()
        if self.stack or self.marked:
            raise UserError("its pickle ends with values left over")
        return value

    def pop(self) -> object:
        if not self.stack:
            raise UserError("its pickle takes a value where there is none")
        return self.stack.pop()

    def top(self) -> object:
        value = self.pop()
        self.stack.append(value)
        return value

    def pop_mark(self) -> list[object]:
        if not self.marked:
            raise UserError("its pickle takes values up to a mark where there is none")
        items, self.stack = self.stack, self.marked.pop()
        return items

    # One method for each opcode that does something; the argument is that of the opcode.

    def protocol(self, argument: object) -> None:
        if argument != 2:
            raise UserError(f"its pickle is of protocol {argument}; PyTorch writes 2, no other is read")

    def mark(self, _: object) -> None:
        self.marked.append(self.stack)
        self.stack = []

    def put(self, argument: object) -> None:
        assert isinstance(argument, int)
        self.memo[argument] = self.top()

    def get(self, argument: object) -> None:
        assert isinstance(argument, int)
        if argument not in self.memo:
            raise UserError(f"its pickle refers to value {argument}, which it never stored")
        self.stack.append(self.memo[argument])

    def empty_dict(self, _: object) -> None:
        self.stack.append({})

    def empty_list(self, _: object) -> None:
        self.stack.append([])

    def tuple_to_mark(self, _: object) -> None:
        items = tuple(self.pop_mark())
        self.stack.append(items)

    def tuple1(self, _: object) -> None:
        self.stack.append((self.pop(),))

    def tuple2(self, _: object) -> None:
        second = self.pop()
        self.stack.append((self.pop(), second))

    def tuple3(self, _: object) -> None:
        third, second = self.pop(), self.pop()
        self.stack.append((self.pop(), second, third))

    def append(self, _: object) -> None:
        item = self.pop()
        self._extend([item])

    def appends(self, _: object) -> None:
        self._extend(self.pop_mark())

    def _extend(self, items: list[object]) -> None:
        target = self.top()
        if not isinstance(target, list):
            raise UserError(f"its pickle appends to a {kind_of(target)}")
        target.extend(items)

    def set_item(self, _: object) -> None:
        value = self.pop()
        self._update([self.pop(), value])

    def set_items(self, _: object) -> None:
        self._update(self.pop_mark())

    def _update(self, items: list[object]) -> None:
        target = self.top()
        if not isinstance(target, dict) or len(items) % 2:
            raise UserError(f"its pickle sets items of a {kind_of(target)}, {len(items)} keys and values")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, str | int):
                raise UserError(f"its pickle has a {kind_of(key)} as a key; only text and whole numbers are")
            target[key] = value

    def global_name(self, argument: object) -> None:
        assert isinstance(argument, Name)
        self.stack.append(allowed(argument))

    def persistent(self, _: object) -> None:
        storage = outside(self.pop())
        self.storages.setdefault(storage.key, storage)
        self.stack.append(storage)

    def reduce(self, _: object) -> None:
        arguments, called = self.pop(), self.pop()
        self.stack.append(built(called, arguments))

    def new_object(self, _: object) -> None:
        arguments, kind = self.pop(), self.pop()
        self.stack.append(made_module(kind, arguments))

    def build(self, _: object) -> None:
        state, target = self.pop(), self.top()
        if isinstance(target, Module) and isinstance(state, dict):
            target.attributes = state
        elif not (isinstance(target, dict) and isinstance(state, dict)):
            # An OrderedDict's own attributes (state_dict's _metadata) are left out.
            raise UserError(f"its pickle gives a {kind_of(target)} a state of {kind_of(state)}")

    def stop(self, _: object) -> None:
        self.stopped = True


_OPCODES: Mapping[bytes, pickletools.OpcodeInfo] = MappingProxyType(
    {opcode.code.encode("latin-1"): opcode for opcode in pickletools.opcodes}
)
_LITERALS = frozenset({"BINUNICODE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"})
_CONSTANTS: Mapping[str, object] = MappingProxyType(
    {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
)
_STEPS: Mapping[str, Callable[[_Machine, object], None]] = MappingProxyType(
    {
        "PROTO": _Machine.protocol,
        "MARK": _Machine.mark,
        "BINPUT": _Machine.put,
        "LONG_BINPUT": _Machine.put,
        "BINGET": _Machine.get,
        "LONG_BINGET": _Machine.get,
        "EMPTY_DICT": _Machine.empty_dict,
        "EMPTY_LIST": _Machine.empty_list,
        "TUPLE": _Machine.tuple_to_mark,
        "TUPLE1": _Machine.tuple1,
        "TUPLE2": _Machine.tuple2,
        "TUPLE3": _Machine.tuple3,
        "APPEND": _Machine.append,
        "APPENDS": _Machine.appends,
        "SETITEM": _Machine.set_item,
        "SETITEMS": _Machine.set_items,
        "GLOBAL": _Machine.global_name,
        "BINPERSID": _Machine.persistent,
        "REDUCE": _Machine.reduce,
        "NEWOBJ": _Machine.new_object,
        "BUILD": _Machine.build,
        "STOP": _Machine.stop,
    }
)
