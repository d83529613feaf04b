"""Runs of several people as one leaderboard: what is joined, what is refused, and who made what."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from evalharness.errors import UserError
from evalharness.merging import Part, merge, read_part
from evalharness.results import CellRecord, Results, ScoreRow, read_results, write_results
from tests.evalharness.test_report import TABLE, build, full, record

CONFIG = {"model": "toy", "settings.steps": 20, "prompts_sha256": "aa", "workers": 2}


def part(name: str, cells: list[CellRecord], **changes: Any) -> Part:
    manifest = {
        "config": CONFIG | changes.pop("config", {}),
        "git": {"commit": f"of {name}"},
        "started": name,
    }
    return Part(name, build(cells, manifest=manifest, **changes), f"{name}-sha")


def anna(**changes: Any) -> Part:
    return part("anna", [record("bf16", 16), record("rtn", 4), record("lsq", 3)], **changes)


def ben(**changes: Any) -> Part:
    return part("ben", [record("bf16", 16), record("qvgen", 3), record("rtn", 3)], **changes)


def test_joined_runs_equal_one_run_of_all_cells() -> None:
    joined = merge([anna(), ben()])
    alone = full()
    assert {c.id: c for c in joined.cells} == {c.id: c for c in alone.cells}
    assert joined.pooled == alone.pooled
    assert sorted(joined.differences, key=str) == sorted(alone.differences, key=str)


def test_a_range_that_one_run_knows_holds_for_all() -> None:
    """Ben's run is from before ranges were stored."""
    known = {"color": (-1.0, 1.0)}
    for parts in ([anna(ranges=known), ben()], [anna(), ben(ranges=known)]):
        assert merge(parts).ranges == known


def test_every_row_says_which_run_it_is_from() -> None:
    first, second = merge([anna(), ben()]).manifest["merged"]
    assert first["cells"] == ["bf16-s0", "lsq-w3a3-s0", "rtn-w4a4-s0"] and first["also_has"] == []
    assert second["cells"] == ["qvgen-w3a3-s0", "rtn-w3a3-s0"] and second["also_has"] == ["bf16-s0"]
    assert second["results_sha256"] == "ben-sha" and second["environment"]["commit"] == "of ben"


def test_joining_joined_runs_keeps_the_older_record() -> None:
    ab = Part("ab", merge([anna(), ben()]), "x")
    third = part("cleo", [record("bf16", 16, 1), record("rtn", 4, 1)])
    again = merge([ab, third])
    assert [entry["name"] for entry in again.manifest["merged"][0]["merged_before"]] == ["anna", "ben"]
    assert again.seeds == [0, 1]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"config": {"settings.steps": 50}}, "settings.steps is 20 in one, 50 in the other"),
        ({"config": {"model_fingerprint": "b"}}, "model_fingerprint is None in one, 'b' in the other"),
        ({"config": {"prompts_sha256": "bb"}}, "prompts_sha256"),
        ({"percent": False}, "percent is True in one, False in the other"),
        ({"prompts": {"0000": "another text"}}, "prompt 0000 has other words"),
    ],
)
def test_mixed_recipes_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        merge([anna(), ben(**changes)])
    assert merge([anna(), ben(config={"workers": 64})]), "how it was run is no recipe"


def test_one_method_with_two_recipes_is_refused_also_over_seeds() -> None:
    other = {"granularity": "per_tensor"}
    same_cell = part("ben", [replace(record("lsq", 3), method_config=other)])
    with pytest.raises(
        UserError, match="lsq-w3a3-s0 was made by two recipes: granularity is 'per_token' in anna"
    ):
        merge([anna(), same_cell])
    other_seed = part("ben", [replace(record("lsq", 3, 1), method_config=other)])
    with pytest.raises(UserError, match="would be one row, but granularity"):
        merge([anna(), other_seed])


def test_one_cell_with_two_scores_is_refused() -> None:
    scores = {
        name: [ScoreRow("0000", 0, 0.5), ScoreRow("0001", 0, 0.5)]
        for name in ("subject_consistency", "color")
    }
    with pytest.raises(UserError, match="bf16-s0 has other scores in anna than in ben"):
        merge([anna(), part("ben", [replace(record("bf16", 16), scores=scores)])])


def test_names_and_numbers_of_runs() -> None:
    with pytest.raises(UserError, match="takes at least two"):
        merge([anna()])
    with pytest.raises(UserError, match="called alike"):
        merge([anna(), part("anna", [record("rtn", 3)])])


def write(folder: Path, results: Results) -> str:
    folder.mkdir()
    write_results(results, folder / "results.json")
    return str(folder)


def test_the_command(call, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    a, b = write(tmp_path / "a", anna().results), write(tmp_path / "b", ben().results)
    done = call("leaderboard", "merge", a, f"ben={b}", "--output", "joined")
    assert done.code == 0, done.err
    results = read_results(tmp_path / "joined/results.json")
    assert [entry["name"] for entry in results.manifest["merged"]] == ["a", "ben"]
    page = (tmp_path / "joined/report.html").read_text()
    assert "from run" in page and "ben (" in page
    assert "qvgen" in (tmp_path / "joined/leaderboard.md").read_text()
    (tmp_path / "joined/leaderboard.md").unlink()
    report = call("report", "joined", "--reporters", "markdown")
    assert report.code == 0 and "qvgen" in (tmp_path / "joined/leaderboard.md").read_text(), report.err
    again = call("leaderboard", "merge", a, b, "--output", "joined")
    assert again.code == 2 and "not empty" in again.err
    wrong = call("leaderboard", "join", a, b, "--output", "x")
    assert wrong.code == 2 and "unknown action 'join'" in wrong.err
    missing = call("leaderboard", "merge", a, "nowhere", "--output", "x")
    assert missing.code == 2 and "no such file" in missing.err
    assert not (tmp_path / "x").exists()


def test_a_part_is_read_by_folder_file_or_name(tmp_path: Path) -> None:
    folder = write(tmp_path / "run", anna().results)
    assert [read_part(g).name for g in (folder, f"{folder}/results.json", f"x={folder}")] == [
        "run",
        "run",
        "x",
    ]
    assert len(TABLE) == 5 and json.loads(Path(folder, "results.json").read_text())


def test_fair_and_author_mode_are_never_one_table() -> None:
    author = replace(record("lsq", 3), method_config={"mode": "author"})
    other = part("ben", [record("bf16", 16), author])
    with pytest.raises(UserError, match=r"ben has rows of mode author and anna has none"):
        merge([anna(), other])
    again = part("cleo", [record("bf16", 16, 1), replace(author, cell_id="lsq-w3a3-s1", seed=1)])
    assert len(merge([other, again]).cells) == 4, "two runs of author mode are"
