"""Files that survive: atomic writes, records cut short at any byte, the lock."""

from __future__ import annotations

import errno
import json
import os
import signal
import stat
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evalharness.errors import StorageError, UserError
from evalharness.runfolder import RunFolder
from evalharness.store import (
    JsonLines,
    atomic_write_json,
    atomic_write_text,
    read_json,
    replace_folder,
    temporary_folder,
)

RECORDS = st.lists(
    st.dictionaries(st.text(max_size=8), st.none() | st.integers() | st.text(max_size=20), max_size=3),
    max_size=6,
)


def disk_full(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_failed_write_leaves_the_old_file_and_no_litter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    atomic_write_text(path, "old")
    monkeypatch.setattr(os, "fsync", disk_full)
    with pytest.raises(OSError, match="No space"):
        atomic_write_text(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_written_files_have_the_mode_of_ordinary_ones(tmp_path: Path) -> None:
    (tmp_path / "ordinary").write_text("")
    atomic_write_text(tmp_path / "ours", "")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "ordinary").stat().st_mode


def test_nan_never_reaches_a_json_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        atomic_write_json(tmp_path / "x.json", {"value": float("nan")})
    with pytest.raises(ValueError, match="JSON"):
        JsonLines(tmp_path / "x.jsonl").append([{"value": float("inf")}])


def test_read_json(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    assert read_json(path) is None
    atomic_write_json(path, {"a": [1, "é"]})
    assert read_json(path) == {"a": [1, "é"]}
    for bad in ('{"a": 1', "[1]"):
        path.write_text(bad)
        with pytest.raises(UserError, match=str(path)):
            read_json(path)


@given(RECORDS, RECORDS)
def test_records_come_back_in_order(first: list[dict[str, Any]], second: list[dict[str, Any]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        lines = JsonLines(Path(folder) / "x.jsonl")
        lines.append(first)
        lines.append(second)
        assert lines.read() == first + second


@given(RECORDS.filter(bool), st.data())
def test_cut_at_any_byte_loses_only_the_cut_record(
    records: list[dict[str, Any]], data: st.DataObject
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        lines = JsonLines(Path(folder) / "x.jsonl")
        lines.append(records)
        whole = lines.path.read_bytes()
        cut = data.draw(st.integers(0, len(whole)))
        lines.path.write_bytes(whole[:cut])
        survivors = whole[:cut].count(b"\n")
        assert lines.read() == records[:survivors]
        lines.append([{"after": "crash"}])
        assert lines.read() == [*records[:survivors], {"after": "crash"}]


def test_a_corrupt_line_in_the_middle_is_an_error_with_its_number(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"a": 1}\n{"a": \n{"a": 3}\n')
    with pytest.raises(StorageError, match=r"x\.jsonl: line 2"):
        JsonLines(path).read()


def test_a_failed_append_leaves_the_records_as_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = JsonLines(tmp_path / "x.jsonl")
    lines.append([{"a": 1}])
    before = lines.path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", disk_full)
        with pytest.raises(OSError, match="No space"):
            lines.append([{"a": 2}])
    assert lines.path.read_bytes() == before


def test_replace_folder_swaps_whole_folders(tmp_path: Path) -> None:
    target = tmp_path / "checkpoint"
    for content in ("first", "second"):
        with temporary_folder(tmp_path) as new:
            (new / content).write_text(content)
            replace_folder(new, target)
        assert [p.name for p in target.iterdir()] == [content]
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint"]


HOLD = """
import sys, time
from pathlib import Path
from evalharness.runfolder import RunFolder
with RunFolder(Path(sys.argv[1])).lock():
    print("held", flush=True)
    time.sleep(60)
"""


def test_the_lock_names_its_holder_and_dies_with_it(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    command = [sys.executable, "-c", HOLD, str(folder.root)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with (
            pytest.raises(StorageError, match=rf"in use by process {holder.pid} \(since 20\d\d-"),
            folder.lock(),
        ):
            pass
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    with folder.lock():
        assert json.loads((folder.root / ".lock").read_text())["pid"] == os.getpid()


def test_locking_touches_nothing_in_a_foreign_folder(tmp_path: Path) -> None:
    (tmp_path / ".tmp-mine").write_text("not ours")
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(StorageError, match="not empty and no run folder"), RunFolder(tmp_path).lock():
        pass
    assert sorted(p.name for p in tmp_path.iterdir()) == [".tmp-mine", "thesis.tex"]


def test_locking_clears_what_a_killed_writer_left(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text("{}")
    (tmp_path / "cells").mkdir()
    (tmp_path / "cells" / ".tmp-abc").mkdir()
    (tmp_path / "cells" / ".tmp-abc" / "part").write_text("half")
    with RunFolder(tmp_path).lock():
        assert list((tmp_path / "cells").iterdir()) == []


def test_no_permission_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> int:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    words = "Permission denied; choose another with --output"
    with pytest.raises(StorageError, match=words), RunFolder(tmp_path).lock():
        pass


def test_a_pipe_or_a_device_is_written_to_and_stays_one(tmp_path: Path) -> None:
    """``--junit /dev/stdout`` as root in a container must not leave a file where a device was."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        atomic_write_text(pipe, "four")
        assert os.read(reader, 10) == b"four"
    finally:
        os.close(reader)
    assert stat.S_ISFIFO(pipe.stat().st_mode)
