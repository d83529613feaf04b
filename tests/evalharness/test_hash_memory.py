"""Remembered hashes: right whatever happens to the file, and not read again without need."""

from __future__ import annotations

import hashlib
import os
import random
from pathlib import Path

import pytest

from evalharness import hash_memory
from evalharness.hash_memory import _MAGIC, HashMemory


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
    kept = (tmp_path / "m.json").read_bytes()
    assert b"a.mp4" not in kept and os.fsencode(tmp_path) not in kept, "a memory names nobody's folders"


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
    "content",
    [b"", b"no memory", b'{"videos/a.mp4": {"mark": [], "sha256": "0"}}', _MAGIC, _MAGIC + b"cut short"],
)
def test_a_broken_memory_costs_a_reading(file: Path, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.json").write_bytes(content)
    memory = HashMemory(tmp_path / "m.json")
    assert memory.sha256(file) == hashlib.sha256(b"one").hexdigest()
    memory.save()
    with pytest.raises(FileNotFoundError):
        memory.sha256(tmp_path / "absent")


def test_many_files_are_told_apart_and_the_latest_counts(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against a plain dictionary of what ``hashlib`` says, over several sessions with changes between."""
    rng = random.Random(0)
    wanted: dict[Path, bytes] = {}
    for session in range(4):
        memory = HashMemory(tmp_path / "m.json")
        for _ in range(120):
            path = file.with_name(f"{rng.randrange(200)}.mp4")
            if path not in wanted or rng.random() < 0.3:
                wanted[path] = rng.randbytes(rng.randrange(1, 40))
                path.unlink(missing_ok=True)
                path.write_bytes(wanted[path])
            assert memory.sha256(path) == hashlib.sha256(wanted[path]).hexdigest(), session
        memory.save()
    seen = read(monkeypatch)
    memory = HashMemory(tmp_path / "m.json")
    found = {path: memory.sha256(str(path)) for path in wanted}
    assert found == {path: hashlib.sha256(data).hexdigest() for path, data in wanted.items()}
    assert len(seen) < len(wanted) / 4, "most had not changed since they were asked for last"


def test_a_folder_may_move_with_its_memory(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = HashMemory(tmp_path / "m.json")
    memory.sha256(file)
    memory.save()
    tmp_path.rename(tmp_path.with_name("moved"))
    moved = tmp_path.with_name("moved")
    monkeypatch.chdir(moved)
    seen = read(monkeypatch)
    for path in (moved / "videos/a.mp4", Path("videos/a.mp4")):
        assert HashMemory(moved / "m.json").sha256(path) == hashlib.sha256(b"one").hexdigest()
    assert seen == []
