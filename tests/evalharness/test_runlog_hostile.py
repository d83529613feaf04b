"""Logs and folders that no run can have left: nothing is written outside of the folder."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evalharness.console import Console
from evalharness.errors import UserError
from evalharness.names import is_name
from evalharness.planfile import read_plan_file
from evalharness.runfolder import RunFolder
from evalharness.runlog import mend
from tests.evalharness.conftest import files_of

Call = Callable[..., Any]


def test_a_link_out_of_the_folder_is_refused_before_anything_is_written(
    toy_run: Call, tmp_path: Path
) -> None:
    toy_run("--methods", "toy-round", "--bits", "3", "--no-profile")
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "precious").write_text("kept")
    cell = "cells/toy-round-w3a3-s0"
    for name in (".lock", "events.jsonl", f"{cell}/samples.jsonl", f"{cell}/videos", cell, "cells"):
        aside = tmp_path / "aside"
        (out / name).rename(aside)
        (out / name).symlink_to(elsewhere if aside.is_dir() else elsewhere / "precious")
        result = toy_run("--methods", "toy-round", "--bits", "4", "--no-profile")
        assert result.code == 2 and "is a link out of the run folder" in result.err, name
        assert files_of(elsewhere) == {"precious": b"kept"}, name
        (out / name).unlink()
        aside.rename(out / name)


@pytest.mark.parametrize(
    "line",
    [
        *(json.dumps({"event": "profiled", "cell": n, "record": {}}) for n in ("a\0b", "a" * 300, "a\ud800")),
        json.dumps({"event": "profiled", "cell": "\u202ea\n", "record": {}}),
        '{"event": "profiled", "cell": "a", "record": {"x": NaN}}',
        '{"event": "profiled", "cell": "a", "record": {"x": "\\ud800"}}',
        '{"event": "profiled", "cell": "a", "record": ' + "[" * 100_000,
    ],
)
def test_what_no_run_can_have_logged_is_passed_over(line: str, tmp_path: Path) -> None:
    whole = json.dumps({"event": "profiled", "cell": "b", "record": {"hash": "0"}})
    (tmp_path / "events.jsonl").write_text(f"{line}\n{whole}\n")
    mend(RunFolder(tmp_path), Console())
    found = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert found == {"events.jsonl", "cells/b/profile.json"}


def test_a_foreign_folder_with_a_lock_of_its_own_stays_foreign(tmp_path: Path) -> None:
    (tmp_path / ".lock").write_text('{"owner": "somebody"}')
    (tmp_path / "thesis.tex").write_text("x")
    assert not RunFolder(tmp_path).is_run
    with pytest.raises(UserError, match="not empty and no run folder"):
        RunFolder(tmp_path).refuse_foreign()


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
CONFIGS = st.fixed_dictionaries({"config": VALUES | st.fixed_dictionaries({"cells": VALUES})})
NAMES = ["begin", "finished", "planned", "prepared", "profiled", "discarded", "stage"]
EVENTS = st.lists(
    st.fixed_dictionaries(
        {"event": st.sampled_from(NAMES)},
        optional={
            "cell": st.sampled_from(["../../x", "..", "", "a", "a/b", "/x"]) | VALUES,
            "identity": VALUES, "manifest": VALUES | CONFIGS, "record": VALUES, "plugins": VALUES,
        },
    ),
    max_size=6,
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(events=EVENTS, rest=st.binary(max_size=20))
def test_a_log_of_anything_writes_within_its_folder_or_not_at_all(
    events: list[dict[str, Any]], rest: bytes
) -> None:
    place = Path(tempfile.mkdtemp())
    try:
        folder = RunFolder(place / "deep" / "run")
        folder.root.mkdir(parents=True)
        text = "".join(json.dumps(event) + "\n" for event in events)
        folder.events.path.write_bytes(rest + b"\n" + text.encode())
        mend(folder, Console())
        try:
            read_plan_file(folder)
        except UserError as error:
            assert "\n" not in str(error)
        allowed = {"events.jsonl", "manifest.json", "cells/a/prepare.json", "cells/a/profile.json"}
        outside = {p for p in place.rglob("*") if p.is_file() and not p.is_relative_to(folder.root / "cells")}
        assert {p.name for p in outside} <= allowed
        assert all(len(p.relative_to(folder.root).parts) <= 3 for p in outside)
        assert {p.name for p in place.iterdir()} == {"deep"}
    finally:
        shutil.rmtree(place)


@pytest.mark.parametrize(
    ("name", "is_one"), [("a" * 200, True), ("a" * 201, False), ("../a", False), (".a", False)]
)
def test_names_of_folders_in_a_log(name: str, is_one: bool) -> None:
    assert is_name(name) is is_one
