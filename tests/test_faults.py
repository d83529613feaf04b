"""The fault injector does what it says; one fault of each kind ends with the bytes of a quiet run."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from benchmarks.faults import AFTERWARDS, FLIPPED, damage, document, obey
from benchmarks.injection import KINDS

ROOT = Path(__file__).parents[1]
WRITES = """
import sys
from pathlib import Path
from benchmarks.injection import Fault, install
from evalharness.store import JsonLines, atomic_write_bytes
folder = Path(sys.argv[1])
install(Fault(sys.argv[2], int(sys.argv[3]), when=sys.argv[4], length=int(sys.argv[5])), folder)
lines = JsonLines(folder / "lines.jsonl")
for number in range(3):
    lines.append([{"number": number}])
    atomic_write_bytes(folder / f"{number}.bin", bytes([number]) * 1000)
"""


def write(folder: Path, kind: str, operation: int, when: str = "before", length: int = 1) -> tuple[int, str]:
    folder.mkdir()
    command = [sys.executable, "-c", WRITES, str(folder), kind, str(operation), when, str(length)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.returncode, done.stderr


def test_a_kill_within_a_write_leaves_half_of_it(tmp_path: Path) -> None:
    """Operations: 0 open the lines, 1 write them, 2 fsync; 3 write the file, 4 fsync, 5 replace, 6 fsync."""
    code, _ = write(tmp_path / "a", "kill", 1, "within")
    assert code == -9
    assert (tmp_path / "a/lines.jsonl").read_bytes() == b'{"numbe'
    write(tmp_path / "b", "kill", 3, "within")
    [temporary] = (tmp_path / "b").glob(".tmp-*")
    assert temporary.stat().st_size == 500 and not (tmp_path / "b/0.bin").exists()
    write(tmp_path / "c", "kill", 5, "after")
    assert (tmp_path / "c/0.bin").stat().st_size == 1000


def test_a_full_disk_refuses_and_recovers(tmp_path: Path) -> None:
    code, err = write(tmp_path / "a", "disk full", 3, length=10**9)
    assert code == 1 and os.strerror(errno.ENOSPC) in err
    assert not list((tmp_path / "a").glob("*.bin")) and not list((tmp_path / "a").glob(".tmp-*"))
    code, err = write(tmp_path / "b", "permission lost", 5)
    assert code == 1 and "PermissionError" in err
    assert write(tmp_path / "c", "kill", 999)[0] == 0


def copy_of(folder: Path) -> Path:
    return Path(shutil.copytree(folder, Path(tempfile.mkdtemp(dir=folder.parent)) / "copy"))


def test_damage_and_what_a_person_does_as_told(tmp_path: Path) -> None:
    cell = tmp_path / "cells/a"
    cell.mkdir(parents=True)
    (cell / "scores.jsonl").write_text('{"a": 1}\n{"b": 2}\n')
    assert damage("duplicated records", tmp_path, random.Random(1)) == "cells/a/scores.jsonl"
    assert len((cell / "scores.jsonl").read_text().splitlines()) > 2
    assert damage("damaged video", tmp_path, random.Random(1)) == "", "there is none"
    (cell / "prepare.json").write_text('{"whole": true}')
    assert damage("truncated JSON", tmp_path, random.Random(1)) == "cells/a/prepare.json"
    (tmp_path / "plan.json").write_text("{}")
    drawn = {damage("deleted JSON", copy_of(tmp_path), random.Random(seed)) for seed in range(20)}
    assert drawn == {"plan.json", "cells/a/prepare.json"}
    assert obey(f"error: {cell}/prepare.json: not valid JSON (x); delete it to have it made again")
    assert not (cell / "prepare.json").exists()
    before = (cell / "scores.jsonl").read_text().splitlines()
    assert obey(
        f"error: {cell}/scores.jsonl: line 2: 'b' is missing; remove that line (its work is done again)"
    )
    assert (cell / "scores.jsonl").read_text().splitlines() == [before[0], *before[2:]]
    assert not obey("warning: nothing to do")


def test_a_flipped_digit_is_another_one_in_its_place(tmp_path: Path) -> None:
    found = set()
    for seed in range(20):
        (tmp_path / "manifest.json").write_text('{"a": 19}')
        assert damage(FLIPPED, tmp_path, random.Random(seed)) == "manifest.json"
        found.add((tmp_path / "manifest.json").read_text())
    assert found == {'{"a": 29}', '{"a": 10}'}


def test_the_published_figures_are_of_whole_campaigns_and_all_the_same() -> None:
    records = json.loads((ROOT / "results/reliability/faults.json").read_text())
    assert len(records) >= 200
    assert {record["kind"] for record in records} == {*KINDS, *AFTERWARDS}
    text = " ".join((ROOT / "docs/reliability.md").read_text().split())
    assert f"**{len(records)} of {len(records)} ended with the same bytes**" in text
    assert all(record["same bytes"] for record in records)
    first = {record["exit codes"][0] for record in records if "kill" in record["kind"]}
    assert first == {-9}, "the kills did kill"
    refused = [r["exit codes"][0] for r in records if r["kind"] == "disk full"]
    assert refused.count(2) > len(refused) / 2, "a full disk is one line and exit code 2"
    hurt = [record for record in records if record["kind"] in AFTERWARDS]
    assert all(record["file"] for record in hurt), "each found something to damage"
    whole = [r for r in hurt if r["kind"] in ("truncated JSON", "deleted JSON")]
    assert {"plan.json", "manifest.json"} <= {record["file"] for record in whole}
    assert {Path(record["file"]).name for record in whole} >= {"prepare.json", "profile.json"}
    assert document(records) == (ROOT / "results/reliability/faults.md").read_text()


@pytest.mark.slow
def test_one_fault_of_each_kind() -> None:
    count = len(KINDS) + len(AFTERWARDS)
    command = [sys.executable, "-m", "benchmarks.faults", "--faults", str(count), "--first", "1100"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{count} of {count} runs ended with the bytes of an undisturbed run" in done.stdout
