"""One method against all others: the differences of a table small enough to work out by hand."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from evalharness.errors import UserError
from evalharness.report.against import against
from evalharness.results import write_results
from tests.evalharness.test_report import TABLE, build, full, partial, record


def cells(text: str) -> dict[str, list[str]]:
    """Rows of the Markdown table by method; the header's name is ``method``."""
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if "|" in line
    ]
    return {row[0]: row[1:] for row in rows if not row[0].startswith("-")}


def values(text: str) -> dict[str, list[float]]:
    """The differences without their intervals and marks; a width that a method lacks is left out."""
    rows = {name: row for name, row in cells(text).items() if name != "method"}
    return {
        name: [float(found[0]) for cell in row if (found := re.findall(r"[+-]\d+\.\d", cell))]
        for name, row in rows.items()
    }


def test_differences_are_those_worked_out_by_hand() -> None:
    """W3A3: qvgen (0.73 + 0.70) / 2, lsq (0.68 + 0.70) / 2, rtn (0.25 + 0.20) / 2, in percent."""
    text = against(full(), "qvgen")
    assert cells(text)["method"] == ["W3A3"]  # at 4 bits there is no qvgen to compare with
    assert values(text) == {"lsq": [-2.5], "rtn": [-49.0]}


def test_who_is_compared_turns_the_sign_and_the_interval() -> None:
    ours, theirs = (cells(against(full(), name)) for name in ("qvgen", "lsq"))
    behind = [float(x) for x in re.findall(r"-?\d+\.\d", ours["lsq"][0])]
    ahead = [float(x) for x in re.findall(r"-?\d+\.\d", theirs["qvgen"][0])]
    assert ahead == [-behind[0], -behind[2], -behind[1]]


def test_full_precision_is_compared_with_at_every_width() -> None:
    """Full precision (0.93 + 0.90) / 2; rtn at 4 bits (0.75 + 0.80) / 2."""
    text = against(full(), "bf16")
    assert cells(text)["method"] == ["W4A4", "W3A3"] and "Bold" not in text
    assert values(text) == {"qvgen": [-20.0], "lsq": [-22.5], "rtn": [-14.0, -69.0]}


def test_a_method_without_all_scores_has_no_row() -> None:
    assert "lsq" not in cells(against(partial(), "qvgen"))


def test_a_name_that_is_not_there() -> None:
    with pytest.raises(UserError, match=r"unknown method 'qvgn'.*bf16, lsq, qvgen, rtn"):
        against(full(), "qvgn")


def test_the_command(call, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    run = tmp_path / "run"
    run.mkdir()
    write_results(full(), run / "results.json")
    done = call("leaderboard", "against", "qvgen", str(run))
    assert done.code == 0 and done.out == against(full(), "qvgen")
    for wrong in (("qvgen",), ("qvgen", str(run), str(run)), ("qvgen", str(run), "--output", "x")):
        assert call("leaderboard", "against", *wrong).code == 2
    assert "needs --output" in call("leaderboard", "merge", str(run), str(run)).err


def test_rows_are_ordered_by_the_widths_that_all_have() -> None:
    """rtn has the easy 4 bits as well: its mean over both widths would be above lsq's at 3."""
    text = against(full(), "bf16")
    assert [name for name in cells(text) if name != "method"] == ["qvgen", "lsq", "rtn"]


def test_what_is_left_out_is_said() -> None:
    assert "No mean, for want of full coverage: lsq at W3A3." in against(partial(), "qvgen")
    some = build([record(*key) for key in TABLE] + [record("qvgen", 3, 1), record("bf16", 16, 1)])
    text = against(some, "bf16")
    assert "Not of every seed (0, 1), in brackets those they have: rtn at W4A4 (0), lsq at W3A3 (0)," in text
    whole = against(full(), "bf16")
    assert "No mean" not in whole and "every seed" not in whole


def test_nothing_to_compare_with() -> None:
    alone = build([record("bf16", 16), record("qvgen", 3)])
    with pytest.raises(UserError, match="no other method has a mean"):
        against(alone, "qvgen")
    with pytest.raises(UserError, match="no results of any method"):
        against(build([]), "qvgen")
