"""The file of a training state: tensors, a JSON header in the metadata, and a checksum over both."""

from __future__ import annotations

import hashlib
import json
import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from qvgen.files import atomic_path
from qvgen.tensor_stream import DTYPES

FORMAT_VERSION = 2
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_HEADER, _CHECKSUM = "train_state", "sha256"
_KINDS: dict[str, type] = {"identity": dict, "log": dict, "random": list, "step": int}
_LOG_KINDS: dict[str, type | tuple[type, ...]] = {
    "count": int, "lines": int, "losses": list, "pending": dict, "seconds": (int, float),
}  # fmt: skip


Layout = Mapping[str, tuple[torch.dtype, Sequence[int]]]


@contextmanager
def new_state(path: Path, header: Mapping[str, Any], layout: Layout) -> Iterator[StateWriter]:
    """A state in place of an older one, once the block has given the writer all of its tensors.

    Raises:
        OSError: the system's.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        writer = StateWriter(file, header, layout)
        yield writer
        writer.finish()


class StateWriter:
    """Writes a state tensor by tensor, so that none but one of them need be in memory.

    Args:
        file: to write to.
        header: JSON values.
        layout: dtype and shape of each tensor that will come, by name.
    """

    def __init__(self, file: BinaryIO, header: Mapping[str, Any], layout: Layout) -> None:
        self._file = file
        self._text = json.dumps({"version": FORMAT_VERSION, **header})
        self._digest = hashlib.sha256(self._text.encode())
        self._entries: dict[str, dict[str, Any]] = {}
        end = 0
        # Large numbers first: so each tensor begins at a multiple of their size.
        for name in sorted(layout, key=lambda name: (-layout[name][0].itemsize, name)):
            dtype, shape = layout[name]
            begin, end = end, end + math.prod(shape) * dtype.itemsize
            self._entries[name] = {
                "dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [begin, end],
            }  # fmt: skip
        self._coming = deque(sorted(layout))
        self._data = len(self._head("0" * 64))

    def put(self, name: str, tensor: Tensor) -> None:
        """The next tensor: they come in the order of their names, as the checksum does."""
        assert name == self._coming.popleft()
        plain = tensor.detach().cpu().contiguous()
        hash_tensor(self._digest, name, plain)
        begin, end = self._entries[name]["data_offsets"]
        assert plain.numel() * plain.element_size() == end - begin
        self._file.seek(self._data + begin)
        self._file.write(plain.flatten().view(torch.uint8).numpy().data)

    def finish(self) -> None:
        """Write the head, with the checksum."""
        assert not self._coming
        self._file.seek(0)
        self._file.write(self._head(self._digest.hexdigest()))
        self._file.flush()

    def _head(self, checksum: str) -> bytes:
        """What a safetensors file begins with."""
        metadata = {_HEADER: self._text, _CHECKSUM: checksum}
        text = json.dumps({"__metadata__": metadata, **self._entries}, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text


class StateFile:
    """A file of ``new_state`` that is open for reading, tensor by tensor.

    Attributes:
        header: as written.
        names: of the tensors.

    Raises:
        ValueError: not a file of ``new_state``, or a header that lacks something.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = _opened(path)
            metadata = self._file.metadata() or {}
            self._text, self._checksum = metadata[_HEADER], metadata.get(_CHECKSUM)
            header = json.loads(self._text)
            self.names = set(self._file.keys())
        except (SafetensorError, KeyError, ValueError, OSError, RecursionError) as error:
            raise unreadable(path, str(error) or type(error).__name__) from error
        if not isinstance(header, dict):
            raise unreadable(path, "its header is no mapping")
        if header.get("version") != FORMAT_VERSION:
            raise ValueError(f"{path} is of another version of this program; delete it to start anew")
        _check_kinds(path, header, _KINDS)
        _check_kinds(path, header["log"], _LOG_KINDS)
        if not all(isinstance(kind, str) for kind in header["random"]):
            raise unreadable(path, "its random states have no names")
        self.header: dict[str, Any] = header

    def tensor(self, name: str) -> Tensor:
        """One of ``names``, on the CPU.

        Raises:
            ValueError: it cannot be read.
        """
        try:
            tensor: Tensor = self._file.get_tensor(name)
        except (SafetensorError, ValueError, OSError) as error:
            raise unreadable(self.path, str(error)) from error
        return tensor

    def check(self, look: Callable[[str, Tensor], None]) -> None:
        """Call ``look`` with each tensor, by name; then say whether header and tensors are what was written.

        Raises:
            ValueError: they are not, a tensor cannot be read, or as ``look``.
        """
        digest = hashlib.sha256(self._text.encode())
        for name in sorted(self.names):
            tensor = self.tensor(name)
            look(name, tensor)
            hash_tensor(digest, name, tensor)
        if self._checksum != digest.hexdigest():
            raise unreadable(self.path, "altered since it was written: its checksum differs")


def _opened(path: Path) -> Any:
    """A ``safe_open``, whose methods have no types."""
    return safe_open(path, framework="pt")


def _check_kinds(path: Path, values: Mapping[str, Any], kinds: Mapping[str, Any]) -> None:
    for key, kind in kinds.items():
        value = values.get(key)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise unreadable(path, f"its {key} is {value!r}")
        if isinstance(value, int | float) and not value >= 0:
            raise unreadable(path, f"its {key} is {value!r}, below zero")


def hash_tensor(digest: hashlib._Hash, name: str, tensor: Tensor) -> None:
    """Add the whole of ``tensor`` to ``digest``."""
    digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
    plain = tensor.detach().cpu().contiguous().flatten()
    digest.update(plain.view(torch.uint8).numpy().data)


def unreadable(path: Path | None, reason: str) -> ValueError:
    """The error for a damaged file."""
    return ValueError(f"{path} is no readable training state ({reason[:500]}); delete it to start anew")
