"""A checksum at the end of each record's line, and of results: a flipped digit is seen, no number lost."""

from __future__ import annotations

import json
import random
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evalharness.console import Console
from evalharness.errors import StorageError, UserError
from evalharness.linesums import is_sound, summed
from evalharness.recovery import recover
from evalharness.results import read_results, write_results
from evalharness.runfolder import RunFolder
from evalharness.store import JsonLines
from tests.evalharness.conftest import files_of, without_sum
from tests.evalharness.test_report import full

Call = Callable[..., Any]
RUN = ("--methods", "toy-round", "--bits", "3", "--no-profile")
VALUES = st.none() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20)
RECORD = st.dictionaries(st.text(max_size=8).filter(lambda key: key != "crc"), VALUES, min_size=1, max_size=4)


@given(RECORD, st.data())
def test_any_changed_byte_is_seen_and_nothing_else(record: dict[str, Any], data: st.DataObject) -> None:
    """CRC-32 finds every burst of up to 32 bits. Where the sum itself is hurt, it may have none left."""
    line = (summed(json.dumps(record, ensure_ascii=False)) + "\n").encode("utf-8", "surrogatepass")
    body, _, tail = line.rpartition(b', "crc": ')
    assert tail == b'"%08x"}\n' % zlib.crc32(body)
    assert is_sound(line) is True
    place = data.draw(st.integers(0, len(line) - 1))
    hurt = line[:place] + bytes([line[place] ^ data.draw(st.integers(1, 255))]) + line[place + 1 :]
    assert is_sound(hurt) is False if place < len(body) else is_sound(hurt) is not True
    assert is_sound((json.dumps(record) + "\n").encode()) is None


def test_sums_are_neither_data_nor_needed(tmp_path: Path) -> None:
    """Old lines and new ones in one file, as after a command of each version."""
    old, new = JsonLines(tmp_path / "a"), JsonLines(tmp_path / "a", sums=True)
    old.append([{"n": 1}, {}])
    new.append([{"n": 2}, {}, {"n": "ö"}])
    assert new.read() == [{"n": 1}, {}, {"n": 2}, {}, {"n": "ö"}]
    assert new.damaged() == []
    before = (tmp_path / "a").read_bytes()
    (tmp_path / "a").write_bytes(before.replace(b'{"n": 2', b'{"n": 3'))
    with pytest.raises(StorageError, match="line 3 is not as it was written"):
        new.read()
    assert new.drop_damaged() == [3]
    assert new.read() == [{"n": 1}, {}, {}, {"n": "ö"}]
    assert new.drop_damaged() == []


def test_a_copy_with_cr_lf_is_held_against_its_sums(tmp_path: Path) -> None:
    lines = JsonLines(tmp_path / "a", sums=True)
    lines.append([{"n": 1}, {"n": 2}])
    lines.path.write_bytes(lines.path.read_bytes().replace(b"\n", b"\r\n"))
    lines.append([{"n": 3}])
    assert lines.read() == [{"n": 1}, {"n": 2}, {"n": 3}] and lines.damaged() == []
    lines.path.write_bytes(lines.path.read_bytes().replace(b'"n": 2', b'"n": 7'))
    with pytest.raises(StorageError, match="line 2 is not as it was written"):
        lines.read()
    assert lines.drop_damaged() == [2] and lines.read() == [{"n": 1}, {"n": 3}]


@pytest.mark.parametrize("lines", [5, None, "7", [[1]], {"a": 1}, ["x", 2.5]])
def test_a_log_that_tells_of_damage_in_another_form_is_passed_over(
    lines: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = RunFolder(tmp_path)
    folder.events.append([{"event": "damaged", "file": "events.jsonl", "lines": lines}, {"event": "x"}])
    flip(folder.events.path, 1, "x", "y")
    for said in (1, 0):
        recover(folder, Console())
        assert capsys.readouterr().err.count("events.jsonl: line 2 not as written") == said


def flip(path: Path, line: int, old: str, new: str) -> None:
    lines = path.read_text().splitlines(keepends=True)
    assert old in lines[line]
    path.write_text("".join([*lines[:line], lines[line].replace(old, new, 1), *lines[line + 1 :]]))


def test_a_flipped_digit_of_a_score_is_judged_again(toy_run: Call, tmp_path: Path) -> None:
    toy_run(*RUN)
    out = tmp_path / "out"
    cell = out / "cells" / "toy-round-w3a3-s0"
    before = files_of(cell)
    value = json.loads((cell / "scores.jsonl").read_text().splitlines()[2])["value"]
    flip(cell / "scores.jsonl", 2, f'"value": {value}', f'"value": {0.5 if value != 0.5 else 0.25}')
    assert (cell / "scores.jsonl").read_bytes() != before["scores.jsonl"]
    again = toy_run(*RUN)
    said = "w3a3-s0/scores.jsonl: line 3 not as written; dropped, what was said there is made again"
    assert again.code == 0 and again.err.count(said) == 1 and "score 1" in again.err
    assert files_of(cell) == before
    [event] = [e for e in map(json.loads, (out / "events.jsonl").open()) if e["event"] == "damaged"]
    assert (event["file"], event["lines"]) == ("cells/toy-round-w3a3-s0/scores.jsonl", [3])
    assert "nothing to do" in (third := toy_run(*RUN)).err and "not as written" not in third.err


def test_a_flipped_digit_of_a_sample_and_of_the_log(toy_run: Call, tmp_path: Path) -> None:
    toy_run(*RUN)
    out = tmp_path / "out"
    samples = out / "cells" / "bf16-s0" / "samples.jsonl"
    ms = json.loads(samples.read_text().splitlines()[0])["ms"]
    flip(samples, 0, f'"ms": {ms}', f'"ms": {ms + 1}')
    flip(out / "events.jsonl", 1, '"time": "2', '"time": "3')
    again = toy_run(*RUN)
    assert again.code == 0 and "generate 1" in again.err
    assert again.err.count("bf16-s0/samples.jsonl: line 1 not as written") == 1
    assert again.err.count("events.jsonl: line 2 not as written; passed over") == 1
    third = toy_run(*RUN)
    assert third.code == 0 and "nothing to do" in third.err and "not as written" not in third.err


def test_what_only_reads_refuses_a_damaged_line(call: Call, toy_run: Call, tmp_path: Path) -> None:
    toy_run(*RUN)
    samples = tmp_path / "out" / "cells" / "bf16-s0" / "samples.jsonl"
    flip(samples, 0, '"status": "ok"', '"status": "OK"')
    found = call("export", "out", "--vbench", "--out", "exported")
    assert found.code == 2 and "line 1 is not as it was written, by its checksum" in found.err


def test_results_with_any_other_digit_are_refused(tmp_path: Path) -> None:
    """Three hundred of them, the sum's own too. CR LF, or a sum taken out, is no damage."""
    path, rng = tmp_path / "results.json", random.Random(0)
    write_results(full(), path)
    text = path.read_text()
    for place in rng.sample([place for place, letter in enumerate(text) if letter.isdigit()], 300):
        path.write_text(f"{text[:place]}{(int(text[place]) + 1) % 10}{text[place + 1 :]}")
        with pytest.raises(UserError):
            read_results(path)
    path.write_bytes(text.replace("\n", "\r\n").encode())
    assert read_results(path) == full()
    path.write_text(without_sum(text))
    assert read_results(path) == full()
    path.write_text(json.dumps(json.loads(text), indent=1))
    with pytest.raises(UserError, match="by its checksum"):
        read_results(path)


def test_every_command_refuses_results_with_another_digit(call: Call, toy_run: Call, tmp_path: Path) -> None:
    toy_run(*RUN)
    path = tmp_path / "out" / "results.json"
    whole = path.read_text()
    shutil.copytree(tmp_path / "out", tmp_path / "good")
    path.write_text(whole.replace('"n_videos_ok": 6', '"n_videos_ok": 5', 1))
    assert path.read_text() != whole
    for command in (
        ("report", "out"),
        ("compare", "good", "out"),
        ("check", "out", "--against", "good"),
        ("check", "good", "--against", "out"),
        ("leaderboard", "merge", "good", "out", "--output", "merged"),
    ):
        found = call(*command)
        assert found.code == 2 and len(found.errors) == 1, command
        assert "results.json: not as it was written, by its checksum" in found.errors[0]
    again = toy_run(*RUN)
    assert again.code == 0 and again.err.splitlines()[-1].endswith(": aggregate 7")
    assert read_results(path).cells == read_results(tmp_path / "good" / "results.json").cells, (
        "made again from the records"
    )
