"""The file of a training state: tensors, a JSON header in the metadata, and a checksum over both."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
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


def read_state(path: Path) -> tuple[dict[str, Any], dict[str, Tensor], bool]:
    """Header, tensors, and whether both are what was written.

    Raises:
        ValueError: not a file of ``write_state``, or a header that lacks something.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        text = metadata[_HEADER]
        header = json.loads(text)
        tensors = load_file(path)
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
    return header, tensors, metadata.get(_CHECKSUM) == checksum(text, tensors)


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
