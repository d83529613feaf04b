"""Where a PyTorch file keeps its pickle and its numbers: zip archives (since 1.6) and the form before.

Only members that the pickle refers to by number are read, at most once each; they must be stored
uncompressed, so nothing grows beyond the size of the file. No member becomes a file.
"""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from evalharness.errors import UserError
from evalharness.torchfiles.machine import MAX_BYTES, interpret
from evalharness.torchfiles.values import Storage, shown

__all__ = ["Contents", "opened"]

_ZIP = b"PK\x03\x04"
_PICKLE = b"\x80\x02"
_TAR = b"ustar"
_TAR_AT = 257
_MAGIC = 0x1950A86A20F9469CFC6C
_VERSION = 1001
_MEMBER = "data.pkl"


@dataclass(frozen=True, slots=True)
class Contents:
    """An open file.

    Attributes:
        described: the value of its pickle, see ``machine.Pickle``.
        size: of the file, bytes.
        big_endian: whether the numbers are.
        numbers: the bytes of a storage; asked once for each key.
    """

    described: object
    size: int
    big_endian: bool
    numbers: Callable[[Storage], bytearray]


@contextmanager
def opened(path: Path) -> Iterator[Contents]:
    """The contents of ``path`` while it is open.

    Raises:
        ValueError: neither of the two forms, damaged, or with anything that tensors do not need.
        OSError: the file cannot be opened.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(_TAR_AT + len(_TAR))
        file.seek(0)
        if start.startswith(_ZIP):
            with _damage():
                archive = zipfile.ZipFile(file)
                contents = _Archive(archive, size).contents()
            with archive:
                yield contents
        elif start.startswith(_PICKLE):
            yield _sequence(file.read())
        elif start[_TAR_AT:] == _TAR:
            raise UserError("a tar file as PyTorch wrote before 0.1.10; load and save it with a newer one")
        else:
            raise UserError("not a file that torch.save or torch.jit.save wrote")


@contextmanager
def _damage() -> Iterator[None]:
    """Turn all that zipfile raises about bad archives into one line."""
    try:
        yield
    except UserError:
        raise
    except (
        zipfile.BadZipFile,
        zipfile.LargeZipFile,
        zlib.error,
        struct.error,
        EOFError,
        RuntimeError,
        ValueError,
        OverflowError,
        OSError,
    ) as error:
        raise UserError(f"a damaged archive: {shown(str(error)) or type(error).__name__}") from None


class _Archive:
    def __init__(self, archive: zipfile.ZipFile, size: int) -> None:
        self.archive = archive
        self.size = size
        self.left = size
        self.members = {info.filename: info for info in archive.infolist()}
        if len(self.members) != len(archive.infolist()):
            raise UserError("two members of the archive have the same name")
        self.root = self._root()

    def contents(self) -> Contents:
        described = interpret(bytes(self._read(_MEMBER, most=MAX_BYTES))).value
        order = "little"
        if f"{self.root}byteorder" in self.members:
            order = self._read("byteorder", most=16).decode("latin-1")
        if order not in ("little", "big"):
            raise UserError(f"its byte order is {shown(order)!r}; allowed: little, big")
        return Contents(described, self.size, order == "big", self.numbers)

    def numbers(self, storage: Storage) -> bytearray:
        with _damage():
            return self._read(f"data/{storage.key}", exactly=storage.nbytes)

    def _root(self) -> str:
        """The one folder that the archive consists of, with its slash."""
        roots = [name.removesuffix(_MEMBER) for name in self.members if name.endswith(f"/{_MEMBER}")]
        roots = [root for root in roots if root.count("/") == 1]
        if len(roots) != 1:
            raise UserError(f"an archive with {len(roots)} folders that hold a {_MEMBER}; PyTorch's have one")
        return roots[0]

    def _read(self, name: str, *, most: int = 0, exactly: int | None = None) -> bytearray:
        info = self.members.get(self.root + name)
        if info is None:
            raise UserError(f"the archive lacks {name}")
        if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
            raise UserError(f"{name} is compressed; PyTorch stores it as it is, nothing else is read")
        if exactly is not None and info.file_size != exactly:
            raise UserError(f"{name} has {info.file_size} bytes, but its tensors need {exactly}")
        if exactly is None and info.file_size > most:
            raise UserError(f"{name} has {info.file_size} bytes; at most {most} are read")
        self.left -= info.file_size
        if self.left < 0:
            raise UserError("the members of the archive are together larger than the file")
        with self.archive.open(info) as member:
            data = bytearray(member.read())
        if len(data) != info.file_size:
            raise UserError(f"{name} ends early: {len(data)} of {info.file_size} bytes")
        return data


def _sequence(data: bytes) -> Contents:
    """The form before 1.6: magic number, version, machine, tensors, list of keys; then the numbers."""
    magic = interpret(data)
    version = interpret(data, magic.end)
    if magic.value != _MAGIC or version.value != _VERSION:
        raise UserError("a pickle, but not one that torch.save wrote")
    machine = interpret(data, version.end)
    described = interpret(data, machine.end)
    keys = interpret(data, described.end)
    places = _places(data, keys.end, keys.value, described.storages)
    return Contents(described.value, len(data), False, lambda storage: bytearray(data[places[storage.key]]))


def _places(data: bytes, at: int, keys: object, storages: Mapping[str, Storage]) -> dict[str, slice]:
    """Where the numbers of each storage lie: one after another, each after how many there are.

    Both are little-endian, on whichever machine they were written.
    """
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise UserError("its list of storages is no list of keys")
    if len(keys) != len(set(keys)) or set(keys) != set(storages):
        raise UserError("its list of storages does not fit its tensors")
    places = {}
    for key in keys:
        elements, length = storages[key].elements, storages[key].nbytes
        if int.from_bytes(data[at : at + 8], "little") != elements or at + 8 + length > len(data):
            raise UserError(f"storage {key} is cut short or of another size than its tensors need")
        places[key] = slice(at + 8, at + 8 + length)
        at += 8 + length
    return places
