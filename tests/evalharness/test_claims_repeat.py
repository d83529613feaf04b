"""Trainings made twice with the same seeds: by hand, and the shipped page from the shipped records."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from evalharness.errors import UserError
from evalharness.tinyworld.claims import repeat
from evalharness.tinyworld.claims.runs import Run, Setting
from tests.archives import unpack

CLAIMS = Path(__file__).parents[2] / "results" / "claims"
W3 = Setting(3, 3, "std")
T1 = 12.706204736432095  # 97.5 % point of Student's t with one degree of freedom, from a table


def trainings(losses: Mapping[str, dict[int, float | None]], **record: Any) -> list[Run]:
    record = {"git": {"commit": "0123456789abcdef", "dirty": False}, **record}
    return [
        Run(arm=arm, setting=W3, seed=seed, distill=loss, task=loss, log=[], record=record)
        for arm, seeds in losses.items()
        for seed, loss in seeds.items()
    ]


Losses = dict[str, dict[int, float | None]]
ONE: Losses = {"kd-qat": {1: 1.0, 2: 2.0, 3: 1.0}, "qvgen": {1: 1.01, 2: 2.06, 3: 1.5}}  # +1, +3, +50 %
TWO: Losses = {"kd-qat": {1: 2.0, 2: 1.0, 3: 1.0}, "qvgen": {1: 2.06, 2: 1.05, 3: None}}  # +3, +5 %, diverged


def find(one: list[Run], two: list[Run]) -> dict[str, Any]:
    return repeat.repeat_findings({"a": one, "b": two}, [("qvgen", "kd-qat")])


def test_two_repeats_of_two_seeds_by_hand() -> None:
    found = find(trainings(ONE), trainings(TWO))
    [row] = found["rows"]
    assert row["averages"] == pytest.approx({"1": 0.02, "2": 0.04})
    # averages 2 and 4: mean 3, deviation sqrt(2), error 1; between repeats 1 and 3, 3 and 5: variance 2
    assert row["estimate"] == pytest.approx(
        {"value": 0.03, "lo": 0.03 - 0.01 * T1, "hi": 0.03 + 0.01 * T1, "n": 2}
    )
    assert row["between_repeats"] == pytest.approx(0.01 * 2**0.5)
    assert [each["value"] for each in row["means"].values()] == pytest.approx([0.02, 0.04])
    assert row["left_out"] == [3] and row["verdict"] == "undecided"
    page = repeat.as_markdown(found)
    assert (
        "| W3A3 | +3.00 [-9.71, +15.71] | 1.41 | +2.00 [-10.71, +14.71] | +4.00 [-8.71, +16.71] | "
        "2; not in all: seed 3 | undecided |" in page
    )
    assert "| W3A3 | 1 | +1.00 | +3.00 | +2.00 |\n" in page
    assert "- a: 6 trainings, code 0123456789ab\n- b: 6 trainings" in page and "code differs" not in page


def test_other_code_is_said() -> None:
    other = trainings(TWO, git={"commit": "fedcba9876543210", "dirty": True})
    page = repeat.as_markdown(find(trainings(ONE), other))
    assert "code fedcba987654 with changes\n- the code differs, so what lies between the repeats is" in page


@pytest.mark.parametrize(("one", "two", "what"), [
    ({"options": {"rank": 4}}, {"options": {"rank": 8}}, "options"),
    ({"options": {"recipe": {"steps": 2}}}, {"options": {"recipe": {"steps": 3}, "rank": 4}}, "options"),
    ({"float32_products": "high"}, {"float32_products": "highest"}, "float32_products"),
    ({"validation": {"clips": 4}}, {"validation": {"clips": 5}}, "validation"),
    ({"device": "cpu"}, {"device": "cuda"}, "device"),
])  # fmt: skip
def test_what_is_no_repeat_is_refused(one: dict[str, Any], two: dict[str, Any], what: str) -> None:
    with pytest.raises(UserError, match=f"kd-qat W3A3 seed 1: other {what} in a than in b"):
        find(trainings(ONE, **one), trainings(TWO, **two))
    find(trainings(ONE, **one), trainings(TWO))  # an older record does not say


def test_the_same_trainings_twice_and_none_in_common_are_refused() -> None:
    with pytest.raises(UserError, match="W3A3: a and b have the very same losses; give each one once"):
        find(trainings(ONE), trainings(ONE))
    with pytest.raises(UserError, match="no seed of qvgen and kd-qat is in all of a, b"):
        find(trainings(ONE), trainings({**TWO, "qvgen": {7: 1.0}}))


@pytest.mark.parametrize(("arguments", "message"), [
    (["--records", "a=x"], "give --records two folders or more"),
    (["--records", "x,y"], "--records x: expected NAME=FOLDER, such as first=build/claims-main"),
    (["--records", "a=x,a=y"], "--records names a twice; give each name one folder"),
    (["--records", "a=x,b=y", "--pairs", "qvgen"], "--pairs qvgen: expected two arms as lower:than"),
    (["--records", "a=nowhere,b=nowhere"], r"nowhere: no arms/\*/record\.json"),
])  # fmt: skip
def test_mistakes_are_named(tmp_path: Path, arguments: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        repeat.main([*arguments, "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_the_shipped_page_is_that_of_the_shipped_records(tmp_path: Path) -> None:
    finals: dict[str, dict[tuple[str, int, int], float]] = {}
    for name in ("main", "earlier"):
        unpack(CLAIMS / name / "records.tar.gz", tmp_path / name)
        records = [json.loads(path.read_text()) for path in (tmp_path / name).glob("arms/*/record.json")]
        finals[name] = {(r["label"], r["w_bits"], r["seed"]): r["final"]["distill"] for r in records}
    folders = ",".join(f"{name}={tmp_path / name}" for name in finals)
    assert repeat.main(["--records", folders, "--out", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "repeat.md").read_text() == (CLAIMS / "repeat.md").read_text()
    again, shipped = (
        json.loads((folder / "repeat.json").read_text(), parse_float=lambda text: round(float(text), 9))
        for folder in (tmp_path / "out", CLAIMS)
    )
    assert again == shipped

    rows = json.loads((CLAIMS / "repeat.json").read_text())["rows"]
    for row in rows:
        table = np.array(
            [
                [of[row["lower"], w, seed] / of[row["than"], w, seed] - 1 for seed in (1, 2, 3, 4)]
                for of in finals.values()
                for w in [int(row["setting"][1])]
            ]
        )
        interval = stats.ttest_1samp(table.mean(0), 0.0).confidence_interval(0.95)
        assert row["estimate"]["value"] == pytest.approx(table.mean())
        assert (row["estimate"]["lo"], row["estimate"]["hi"]) == pytest.approx((interval.low, interval.high))
        assert row["between_repeats"] == pytest.approx(table.var(0, ddof=1).mean() ** 0.5)
    assert len(rows) == 9
