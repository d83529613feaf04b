"""Numbers of papers: each has its source, none is invented, and means agree with their cells."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from evalharness.errors import UserError
from evalharness.papers import COLUMNS, paper_folder, paper_rows, read_papers

EIGHT = (
    "imaging_quality",
    "aesthetic_quality",
    "motion_smoothness",
    "dynamic_degree",
    "background_consistency",
    "subject_consistency",
    "scene",
    "overall_consistency",
)


def test_every_number_has_its_source() -> None:
    numbers = read_papers()
    assert len(numbers) > 600
    assert all(
        number.read_in and number.reference and number.hand in ("first", "second") for number in numbers
    )
    assert all(number.is_second_hand for number in numbers if number.paper == "QVGen"), "never at hand"
    assert all(0 <= number.number <= 100 for number in numbers if number.unit == "percent")


def test_known_cells() -> None:
    """Copied by hand from the reading notes, apart from the file."""
    rows = {
        (r.first.paper, r.first.model, r.first.protocol, r.first.method, r.first.bits_w): r.values
        for r in paper_rows(read_papers())
    }
    assert rows["QVGen", "cogvideox-2b", "qvgen-8", "QVGen", 4]["scene"].value == "31.42"
    assert rows["QVGen", "cogvideox-2b", "qvgen-8", "QVGen", 4].keys() == {
        "imaging_quality",
        "dynamic_degree",
        "scene",
    }
    assert rows["QVGen", "wan2.1-1.3b", "qvgen-8", "Q-DM", 4]["mean"].value == "63.04"
    assert rows["DSAQuant", "wan2.1-1.3b", "qvgen-8", "QVGen public checkpoint", 4]["scene"].value == "11.66"
    assert rows["QVGen", "wan2.1-14b", "latency", "QVGen", 4]["speedup"].value == "1.44"
    assert ("QVGen", "wan2.1-1.3b", "qvgen-8", "QVGen", 4) not in rows, "not established"


def test_means_agree_with_their_cells() -> None:
    for row in paper_rows(read_papers()):
        if "mean" in row.values and row.first.protocol.startswith("qvgen-8"):
            mean = sum(row.values[name].number for name in EIGHT) / 8
            printed = row.values["mean"]
            if "cells give" in printed.note:
                assert mean == pytest.approx(68.46, abs=0.01)
            else:
                assert printed.number == pytest.approx(mean, abs=0.035), row.first


def broken(folder: Path, **changes: str) -> Path:
    record = dict.fromkeys(COLUMNS, "x") | {"bits_w": "4", "bits_a": "4", "value": "1.5", "hand": "first"}
    lines = [",".join(COLUMNS), ",".join((record | changes).values())]
    (folder / "a.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"read_in": ""}, "read_in is missing; a number needs its source"),
        ({"value": "high"}, "could not convert"),
        ({"value": "nan"}, "expected a number"),
        ({"hand": "third"}, "first or second"),
        ({"bits_w": "four"}, "invalid literal"),
    ],
)
def test_a_row_that_is_no_number_is_refused(tmp_path: Path, changes: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_papers(broken(tmp_path, **changes))


def test_a_number_twice_and_foreign_columns(tmp_path: Path) -> None:
    path = broken(tmp_path) / "a.csv"
    (tmp_path / "b.csv").write_text(path.read_text())
    with pytest.raises(UserError, match=r"b\.csv: line 2: the number of .*a\.csv: line 2 again"):
        read_papers(tmp_path)
    (tmp_path / "b.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match="expected"):
        read_papers(tmp_path)
    assert read_papers(tmp_path / "nothing") == []


def test_ls_papers(call) -> None:  # type: ignore[no-untyped-def]
    shown = call("ls", "papers")
    assert shown.code == 0
    assert "reported by papers, not measured here" in shown.out
    listed = json.loads(call("ls", "papers", "--json").out)
    assert len(listed) == len(read_papers())
    assert set(COLUMNS) == set(listed[0])


def test_the_folder_is_the_repositorys() -> None:
    assert paper_folder().name in ("paper", "paper_data")
