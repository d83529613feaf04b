"""The file of a training state: tensors, a JSON header in the metadata, and a checksum over both."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

FORMAT_VERSION = 2
_HEADER, _CHECKSUM = "train_state", "sha256"
_KINDS: dict[str, type] = {"identity": dict, "log": dict, "random": list, "step": int}
_LOG_KINDS: dict[str, type | tuple[type, ...]] = {
    "count": int, "lines": int, "losses": list, "pending": dict, "seconds": (int, float),
}  # fmt: skip


def write_state(header: Mapping[str, Any], tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write ``tensors``, contiguous and on the CPU, and ``header``, JSON values.

    Raises:
        OSError: the system's, which ``save_file`` hides: a full disk shall be known as one.
    """
    text = json.dumps({"version": FORMAT_VERSION, **header})
    metadata = {_HEADER: text, _CHECKSUM: checksum(text, tensors)}
    try:
        save_file(dict(tensors), path, metadata)
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error


class StateFile:
    """A file of ``write_state`` that is open for reading, tensor by tensor.

    Attributes:
        header: as written.
        names: of the tensors.

    Raises:
        ValueError: not a file of ``write_state``, or a header that lacks something.
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


def checksum(text: str, tensors: Mapping[str, Tensor]) -> str:
    """Of the header's text and of every tensor's name, dtype, shape and bytes."""
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        hash_tensor(digest, name, tensors[name])
    return digest.hexdigest()


def hash_tensor(digest: hashlib._Hash, name: str, tensor: Tensor) -> None:
    """Add the whole of ``tensor`` to ``digest``."""
    digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
    plain = tensor.detach().cpu().contiguous().flatten()
    digest.update(plain.view(torch.uint8).numpy().data)


def unreadable(path: Path | None, reason: str) -> ValueError:
    """The error for a damaged file."""
    return ValueError(f"{path} is no readable training state ({reason}); delete it to start anew")
