"""A run's small files, lost or damaged one by one and all at once: nothing is made again, nothing mixed."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from evalharness.config import RunConfig
from evalharness.console import Console
from evalharness.manifestlog import held_against
from evalharness.plan import COMMAND_ONLY, build_plan
from evalharness.planfile import mended_plan, read_plan_file
from evalharness.registry import Registry
from evalharness.runfolder import RunFolder
from evalharness.runlog import mend
from tests.evalharness.conftest import files_of

Call = Callable[..., Any]
RUN = ("--methods", "toy-round,toy-train", "--bits", "3")
TRAINED = "cells/toy-train-w3a3-s0"
SMALL = ["plan.json", "manifest.json", f"{TRAINED}/prepare.json", f"{TRAINED}/profile.json"]
CHANGING = {".lock", ".hashes"}


def kept(folder: Path) -> dict[str, bytes]:
    return {name: data for name, data in files_of(folder).items() if name not in CHANGING}


def hurt(path: Path, how: str) -> None:
    if how == "deleted":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[: 0 if how == "emptied" else len(path.read_bytes()) // 2])


def test_each_file_comes_back_to_the_byte_and_nothing_is_made_again(toy_run: Call, tmp_path: Path) -> None:
    """Of two commands, so that plan and manifest have more than one entry."""
    toy_run("--methods", "toy-round", "--bits", "4")
    toy_run(*RUN)
    out = tmp_path / "out"
    before = kept(out)
    assert len(json.loads(before["manifest.json"])["history"]) == 1
    for name in SMALL:
        for how in ("deleted", "cut in the middle"):
            hurt(out / name, how)
            again = toy_run(*RUN)
            assert again.code == 0 and "nothing to do" in again.err, (name, how, again.err)
            assert f"{name} was lost or damaged; taken from" in again.err
            assert kept(out) == before, (name, how)
    hurt(out / ".aggregate.json", "emptied")
    hurt(out / "results.json", "cut in the middle")
    assert toy_run(*RUN).code == 0
    for name in ("scores.csv", "leaderboard.csv"):
        assert kept(out)[name] == before[name]


def flipped(data: bytes, place: int) -> bytes:
    return data[:place] + b"%d" % ((data[place] - 47) % 10) + data[place + 1 :]


def digits(data: bytes) -> list[int]:
    return [place for place, byte in enumerate(data) if chr(byte).isdigit()]


def test_a_flipped_digit_of_a_small_file_is_seen_and_mended(toy_run: Call, tmp_path: Path) -> None:
    """Forty digits of each, wherever they stand, by what every command does first; one by a whole command."""
    toy_run("--methods", "toy-round", "--bits", "4")
    toy_run(*RUN)
    out, rng = tmp_path / "out", random.Random(0)
    before = kept(out)
    plan = read_plan_file(RunFolder(out))
    for name in SMALL:
        whole = before[name]
        for place in rng.sample(digits(whole), 40):
            (out / name).write_bytes(flipped(whole, place))
            console = Told()
            assert mended_plan(RunFolder(out), console) == plan
            mend(RunFolder(out), console)
            told = [line for line in console.lines if line.startswith(f"{name} was lost or damaged; taken")]
            assert told == console.lines and len(told) == 1, (name, place, whole[place - 30 : place + 5])
            assert (out / name).read_bytes() == whole
        (out / name).write_bytes(flipped(whole, rng.choice(digits(whole))))
        again = toy_run(*RUN)
        assert again.code == 0 and "nothing to do" in again.err, (name, again.err)
        assert again.err.count("warning") == again.err.count(f"{name} was lost or damaged; taken from") == 1
        assert kept(out) == before


class Told(Console):
    """Keeps its warnings."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def warn(self, text: str) -> None:
        self.lines.append(text)


def at_each_write(folder: RunFolder) -> Iterator[tuple[str, bytes]]:
    """The log right after it got what a small file gets next: name of the file, log."""
    lines = folder.events.path.read_bytes().splitlines(keepends=True)
    for number, line in enumerate(lines, start=1):
        event = json.loads(line)
        if name := {
            "planned": "plan.json",
            "begin": "manifest.json",
            "finished": "manifest.json",
            "prepared": f"cells/{event.get('cell')}/prepare.json",
            "profiled": f"cells/{event.get('cell')}/profile.json",
        }.get(event["event"]):
            yield name, b"".join(lines[:number])


def test_a_kill_between_log_and_file_is_no_damage(toy_run: Call, tmp_path: Path) -> None:
    """Every small file of two commands at every one of its writes: as it was before, and what the log says.

    The folder is written anew from each beginning of the log; that is held against the next one's.
    """
    toy_run("--methods", "toy-round", "--bits", "4")
    toy_run(*RUN)
    source = RunFolder(tmp_path / "out")
    place = RunFolder(tmp_path / "killed")
    place.root.mkdir()
    seen = []
    for name, log in at_each_write(source):
        place.events.path.write_bytes(log)
        console = Told()
        if (place.root / "plan.json").exists() or name == "plan.json":
            (place.root / ".lock").write_text(json.dumps({"pid": 1, "started": "then"}))
            mended_plan(place, console)
        mend(place, console)
        assert console.lines == [], name
        seen.append(name)
    for name in SMALL:
        assert (place.root / name).read_bytes() == (source.root / name).read_bytes(), name
    assert seen.count("plan.json") == 2 and seen.count("manifest.json") == 4
    assert sum(name.endswith("prepare.json") for name in seen) == 4
    assert place.events.path.read_bytes() == log, "nothing was added to it"


def test_an_older_copy_of_a_small_file_is_not_taken_for_the_newest(toy_run: Call, tmp_path: Path) -> None:
    toy_run("--methods", "toy-round", "--bits", "4")
    out = tmp_path / "out"
    old = {name: (out / name).read_bytes() for name in SMALL[:2]}
    toy_run(*RUN)
    before = kept(out)
    for name, data in old.items():
        (out / name).write_bytes(data)
        again = toy_run(*RUN)
        assert f"{name} is older than the run's log; taken from" in again.err and "nothing to do" in again.err
        assert kept(out) == before


def test_a_log_that_lost_its_end_takes_nothing_back(toy_run: Call, tmp_path: Path) -> None:
    """Cut after each of its lines: files that are whole stay, and the log learns what they say."""
    toy_run("--methods", "toy-round", "--bits", "4")
    toy_run(*RUN)
    out = tmp_path / "out"
    before = kept(out)
    lines = before["events.jsonl"].splitlines(keepends=True)
    for count in range(len(lines)):
        (out / "events.jsonl").write_bytes(b"".join(lines[:count]) + lines[count][: len(lines[count]) // 2])
        console = Told()
        mended_plan(RunFolder(out), console)
        mend(RunFolder(out), console)
        assert console.lines == [], count
        assert {name: (out / name).read_bytes() for name in SMALL} == {name: before[name] for name in SMALL}
        for name in (SMALL[0], *SMALL[2:]):
            hurt(out / name, "emptied")
        mended_plan(RunFolder(out), console)
        mend(RunFolder(out), console)
        for name in (SMALL[0], *SMALL[2:]):
            assert (out / name).read_bytes() == before[name], (count, name)


def test_a_line_of_the_log_that_is_damaged_takes_nothing_back(toy_run: Call, tmp_path: Path) -> None:
    """A cell made with other options: its older record is in the log too, and is not taken for the newer."""
    toy_run("--methods", "toy-train")
    toy_run("--methods", "toy-train", "--set", "toy-train.steps=3")
    out = tmp_path / "out"
    before = kept(out)
    lines = before["events.jsonl"].splitlines(keepends=True)
    for number, line in enumerate(lines):
        changed = [*lines[:number], flipped(line, digits(line)[0]), *lines[number + 1 :]]
        (out / "events.jsonl").write_bytes(b"".join(changed))
        console = Told()
        mended_plan(RunFolder(out), console)
        mend(RunFolder(out), console)
        assert console.lines == [], line[:80]
        assert {name: (out / name).read_bytes() for name in SMALL} == {name: before[name] for name in SMALL}


def test_files_without_a_sum_are_read_as_they_are_and_told_of_once(toy_run: Call, tmp_path: Path) -> None:
    """Of an older version: what the log says otherwise is told of, and does not count."""
    toy_run(*RUN)
    out = tmp_path / "out"
    for name in (SMALL[0], *SMALL[2:]):
        record = json.loads((out / name).read_text())
        del record["crc"]
        (out / name).write_text(json.dumps(record))
    console = Told()
    mended_plan(RunFolder(out), console)
    mend(RunFolder(out), console)
    assert console.lines == []
    record = json.loads((out / f"{TRAINED}/profile.json").read_text())
    (out / f"{TRAINED}/profile.json").write_text(json.dumps({**record, "step_ms": 1e6}))
    mend(RunFolder(out), console)
    assert len(console.lines) == 1 and "profile.json is not what events.jsonl says" in console.lines[0]
    mend(RunFolder(out), console)
    assert len(console.lines) == 1
    assert json.loads((out / f"{TRAINED}/profile.json").read_text())["step_ms"] == 1e6


@pytest.mark.parametrize("option", [float("nan"), "\ud800"], ids=["NaN", "half a character"])
def test_a_plan_that_cannot_be_written_again_does_not_count(
    option: object, toy_run: Call, tmp_path: Path
) -> None:
    """Without a sum, as of an older version: each command told of it, and one that adds a cell ended."""
    toy_run(*RUN, "--no-profile")
    path = tmp_path / "out" / "plan.json"
    whole = path.read_bytes()
    plan = {key: value for key, value in json.loads(whole).items() if key != "crc"}
    plan["cells"][1]["options"] = {"odd": option}
    path.write_text(json.dumps(plan))
    again = toy_run(*RUN, "--no-profile")
    assert again.code == 0 and again.err.count("plan.json was lost or damaged; taken from") == 1
    assert path.read_bytes() == whole and "warning" not in toy_run(*RUN, "--no-profile").err


def test_an_older_version_that_goes_on_with_a_folder_adds_its_cells(toy_run: Call, tmp_path: Path) -> None:
    """It writes ``plan.json`` without a sum, and logs its cells with ``begin`` alone."""
    toy_run("--methods", "toy-round", "--bits", "4", "--no-profile")
    toy_run("--methods", "toy-round", "--bits", "3", "--no-profile")
    out = tmp_path / "out"
    lines = [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()]
    last = max(number for number, event in enumerate(lines) if event["event"] == "planned")
    whole = json.loads((out / "plan.json").read_text())
    del lines[last], whole["crc"]
    (out / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (out / "plan.json").write_text(json.dumps(whole))
    console = Told()
    plan = mended_plan(RunFolder(out), console)
    assert list(plan.cells) == ["bf16-s0", "toy-round-w4a4-s0", "toy-round-w3a3-s0"] and console.lines == []
    hurt(out / "plan.json", "deleted")
    assert mended_plan(RunFolder(out), console) == plan


def entry(started: str, **rest: Any) -> dict[str, Any]:
    return {"started": started, "finished": None, **rest}


@pytest.mark.parametrize(
    ("own", "told", "state", "should"),
    [
        (["a", "b"], ["a", "b"], "whole", None),
        (["a", "b", "c"], ["c"], "whole", None),  # the log began late
        (["a", "b", "c"], ["a", "c"], "whole", None),  # a line of it is damaged
        (["a"], ["a", "b"], "behind", ["a", "b"]),
        (["b"], ["a", "b"], "older", ["a", "b"]),
        (["a", "B", "c"], ["b", "c"], "older", ["a", "b", "c"]),
        (["a", "B", "c"], ["b"], "older", ["a", "b", "c"]),  # by its second
        (["a", "x"], ["b"], "older", ["a", "b"]),  # by its place
    ],
)
def test_entries_of_a_manifest_beside_the_logs(
    own: list[str], told: list[str], state: str, should: list[str] | None, tmp_path: Path
) -> None:
    """Small letters are whole entries, a capital one is altered within its entry, x even in its second."""

    def entries(names: list[str]) -> list[dict[str, Any]]:
        return [entry(name.lower(), what=name) for name in names]

    def manifest(names: list[str]) -> dict[str, Any]:
        *history, last = entries(names)
        return {**last, "history": history}

    folder = RunFolder(tmp_path)
    folder.manifest.write_text(json.dumps(manifest(own)))
    events = [{"event": "begin", "manifest": each} for each in entries(told)]
    if state != "behind":
        events.append({"event": "end"})
    assert held_against(folder, events) == (state, None if should is None else manifest(should))


def test_the_end_of_a_command_is_its_own(tmp_path: Path) -> None:
    """Of two commands the line that began the second is damaged: its end is not the first one's."""
    first = {**entry("1"), "history": []}
    (tmp_path / "manifest.json").write_text(json.dumps({**entry("2", finished="4"), "history": [entry("1")]}))
    events = [
        {"event": "begin", "manifest": entry("1")},
        {"event": "finished", "started": "2", "finished": "4"},
    ]
    assert held_against(RunFolder(tmp_path), events) == ("whole", None)
    (tmp_path / "manifest.json").unlink()
    assert held_against(RunFolder(tmp_path), events)[1] == first


def test_the_end_of_a_command_that_began_in_the_same_second_is_its_own(tmp_path: Path) -> None:
    ended = {**entry("1", finished="1"), "history": []}
    later = entry("1", finished="4", plugins=["b"])
    manifest = tmp_path / "manifest.json"
    manifest.write_text(json.dumps({**later, "history": [entry("1", finished="1")]}))
    events = [
        {"event": "begin", "manifest": entry("1")},
        {"event": "finished", "started": "1", "finished": "1"},
        {"event": "finished", "started": "1", "finished": "4", "plugins": ["b"]},
    ]
    assert held_against(RunFolder(tmp_path), events) == ("whole", None)
    manifest.unlink()
    assert held_against(RunFolder(tmp_path), events)[1] == ended


def test_commands_that_make_nothing_tell_of_a_damaged_record(
    call: Call, toy_run: Call, tmp_path: Path
) -> None:
    toy_run(*RUN)
    out = tmp_path / "out"
    prepare = out / TRAINED / "prepare.json"
    data = prepare.read_bytes()
    prepare.write_bytes(flipped(data, digits(data)[-1]))
    hurt_files = kept(out)
    for shown in (
        call("export", "out", "--vbench", "--out", "exported", "--cells", "bf16-s0"),
        call("run", "--model", "toy", "--workers", "0", "--output", "out", *RUN, "--dry-run"),
    ):
        assert f"{TRAINED}/prepare.json was lost or damaged; `evalharness run` takes it from" in shown.err
        assert kept(out) == hurt_files


def test_commands_that_make_nothing_read_a_lost_plan_too(call: Call, toy_run: Call, tmp_path: Path) -> None:
    toy_run(*RUN)
    out = tmp_path / "out"
    plan = (out / "plan.json").read_bytes()
    hurt(out / "plan.json", "deleted")
    shown = call("export", "out", "--vbench", "--out", "exported")
    assert shown.code == 0 and "taken from the run's log" in shown.err
    assert not (out / "plan.json").exists(), "without the lock nothing is written"
    dry = call("run", "--model", "toy", "--workers", "0", "--output", "out", *RUN, "--dry-run")
    assert "3 cells, 0 videos to make" in dry.out
    assert call("score", "out", "--workers", "0", "--device", "cpu").code == 0
    assert (out / "plan.json").read_bytes() == plan


def test_a_folder_from_before_the_log_had_plans_is_read_from_its_manifest(
    call: Call, toy_run: Call, tmp_path: Path
) -> None:
    toy_run("--methods", "toy-train", "--bits", "4")
    toy_run(*RUN)
    out = tmp_path / "out"
    plan = json.loads((out / "plan.json").read_text())
    events = [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()]
    for event in events:
        for key in ("identity", "manifest", "record"):
            event.pop(key, None)
    (out / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    hurt(out / "plan.json", "deleted")
    again = toy_run(*RUN)
    assert "nothing to do" in again.err
    assert json.loads((out / "plan.json").read_text()) == plan
    hurt(out / "manifest.json", "cut in the middle")
    toy_run(*RUN)
    entry = json.loads((out / "manifest.json").read_text())
    assert entry["config"]["prompts_sha256"] == plan["identity"]["prompts_sha256"], "from results.json"
    assert len(entry["history"]) == 1


def test_a_log_that_begins_late_costs_no_cell_that_the_manifest_knows(toy_run: Call, tmp_path: Path) -> None:
    """An older folder that a newer version went on with, or one whose log was lost in between."""
    toy_run("--methods", "toy-train", "--bits", "4", "--no-profile")
    out = tmp_path / "out"
    hurt(out / "events.jsonl", "deleted")
    late = ("--methods", "toy-round", "--bits", "3", "--no-profile")
    toy_run(*late)
    before = kept(out)
    for lost in (["plan.json"], ["manifest.json"], ["plan.json", "manifest.json"]):
        for name in lost:
            hurt(out / name, "deleted")
        again = toy_run(*late)
        assert again.code == 0 and "nothing to do" in again.err, lost
        for name in ("plan.json", "manifest.json", "results.json"):
            after, was = json.loads(kept(out)[name]), json.loads(before[name])
            if name == "manifest.json":  # the entry that only the results have was published before it ended
                after["history"][0].pop("finished"), was["history"][0].pop("finished")
            assert after == was, (lost, name)


def test_with_all_that_knew_it_lost_the_videos_say_whose_they_are(toy_run: Call, tmp_path: Path) -> None:
    toy_run(*RUN, "--no-profile")
    out = tmp_path / "out"
    plan, videos = (out / "plan.json").read_bytes(), files_of(out / "cells")
    for name in ("plan.json", "manifest.json", "events.jsonl", "results.json"):
        hurt(out / name, "deleted")
    other = toy_run(*RUN, "--no-profile", "--skip-layers", "none")
    assert other.code == 2 and len(other.errors) == 1 and "plan.json is gone" in other.errors[0]
    assert files_of(out / "cells") == videos and not (out / "plan.json").exists()
    same = toy_run(*RUN, "--no-profile")
    assert same.code == 0 and "generate" not in same.err.splitlines()[-1]
    assert (out / "plan.json").read_bytes() == plan
    assert files_of(out / "cells") == videos, "nothing was made again"


def test_what_the_harness_threw_away_does_not_come_back(
    toy_run: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy_run("--methods", "toy-train")
    monkeypatch.setenv("TOY_FAIL", "prepare/toy-train")
    other = ("--methods", "toy-train", "--set", "toy-train.steps=3")
    assert toy_run(*other).code == 1
    again = toy_run(*other)
    assert again.code == 1 and "taken from" not in again.err
    assert not (tmp_path / "out" / TRAINED / "prepare.json").exists()


def test_what_a_manifest_has_beside_the_identity_is_listed() -> None:
    """An entry of that kind that is not would pass for a part of the identity."""
    config = RunConfig(model="tinyworld", methods="rtn", bits="4", peers="torchao-int8", limit=1)
    plan = build_plan(config, Registry(()))
    assert plan.record().keys() - plan.identity().keys() <= COMMAND_ONLY
    assert not COMMAND_ONLY & plan.identity().keys()
