"""Remembered hashes: right whatever happens to the file, and not read again without need."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from evalharness import hash_memory
from evalharness.hash_memory import HashMemory


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(hash_memory, "SETTLED_NS", -1)  # at once, for the test
    (tmp_path / "videos").mkdir()
    path = tmp_path / "videos" / "a.mp4"
    path.write_bytes(b"one")
    return path


def read(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    seen: list[Path] = []
    plain = hash_memory.file_sha256
    monkeypatch.setattr(hash_memory, "file_sha256", lambda path: (seen.append(path), plain(path))[1])
    return seen


def test_an_unchanged_file_is_read_once(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = read(monkeypatch)
    for _ in range(3):
        memory = HashMemory(tmp_path / "m.json")
        assert memory.sha256(file) == hashlib.sha256(b"one").hexdigest()
        memory.save()
    assert seen == [file]
    assert str(tmp_path) not in (tmp_path / "m.json").read_text()


@pytest.mark.parametrize("how", ["longer", "same length", "time set back", "replaced", "link"])
def test_a_changed_file_is_read_again(file: Path, tmp_path: Path, how: str) -> None:
    memory = HashMemory(tmp_path / "m.json")
    memory.sha256(file)
    before = file.stat()
    data = b"longer" if how == "longer" else b"two"
    if how in ("replaced", "link"):
        (tmp_path / "other").write_bytes(data)
        os.utime(tmp_path / "other", ns=(before.st_atime_ns, before.st_mtime_ns))
        file.unlink()
        if how == "link":
            file.symlink_to(tmp_path / "other")
        else:
            (tmp_path / "other").rename(file)
    else:
        file.write_bytes(data)
    if how == "time set back":
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert memory.sha256(file) == hashlib.sha256(data).hexdigest()


def test_a_file_written_just_now_is_not_remembered(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hash_memory, "SETTLED_NS", 60 * 10**9)
    seen = read(monkeypatch)
    memory = HashMemory(tmp_path / "m.json")
    memory.sha256(file)
    memory.sha256(file)
    memory.save()
    assert len(seen) == 2 and not (tmp_path / "m.json").exists()


@pytest.mark.parametrize(
    "content", ["no json", "[]", '{"videos/a.mp4": 3}', '{"videos/a.mp4": {"mark": []}}']
)
def test_a_broken_memory_costs_a_reading(file: Path, tmp_path: Path, content: str) -> None:
    (tmp_path / "m.json").write_text(content)
    memory = HashMemory(tmp_path / "m.json")
    assert memory.sha256(file) == hashlib.sha256(b"one").hexdigest()
    memory.save()
    with pytest.raises(FileNotFoundError):
        memory.sha256(tmp_path / "absent")
