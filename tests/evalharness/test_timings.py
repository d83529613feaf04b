"""Gates on times taken in turns: what is caught, what is not, and what is refused."""

from __future__ import annotations

import json
import math
import random
import statistics
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from benchmarks.against import verdicts_of_draws
from evalharness.errors import UserError
from evalharness.gates.spec import Gate, parse_gates
from evalharness.gates.status import Status
from evalharness.gates.timings import Timing, judge_timings, read_timings, rise_of

GATE = Gate(metric="timings", max_rise_relative=0.025)


def turns(slower: float, seed: int, *, noise: float = 0.04, drift: float = 0.1, count: int = 40) -> Timing:
    """Pairs on a machine that drifts by a tenth, with noise of its own on every time."""
    rng = random.Random(seed)
    speed = [1 + drift * i / count for i in range(count)]
    reference = tuple(s * rng.lognormvariate(0, noise) for s in speed)
    run = tuple(s * (1 + slower) * rng.lognormvariate(0, noise) for s in speed)
    return Timing(reference, run)


def verdict(timing: Timing, gate: Gate = GATE, level: float = 0.01) -> Status:
    [found] = judge_timings(gate, {"a": timing}, level)
    return found.status


def test_a_step_five_per_cent_slower_is_caught_and_no_change_is_not() -> None:
    """20 each, as on a machine whose single times are off by 4 % and whose speed drifts by 10 %."""
    assert [verdict(turns(0.05, seed)) for seed in range(20)].count(Status.REGRESSION) >= 19
    assert [verdict(turns(0.0, seed)) for seed in range(20)].count(Status.REGRESSION) == 0


def test_the_real_measurement_says_the_same() -> None:
    """Processor time of hot paths, this code against itself, plain and with 5 % of busy waiting."""
    record = json.loads((Path(__file__).parents[2] / "results/statistics/timings.json").read_text())
    assert record["draws"] == 20
    assert {name: record[name] for name in record["milliseconds"]} == verdicts_of_draws(record)
    for name in ("aggregation", "weight_quantizer"):
        assert record[name]["5 % slower"]["regressions"] == 20
        assert record[name]["no-op"]["passes"] == 20


def test_one_wild_turn_and_a_common_drift_change_nothing() -> None:
    even = Timing((1.0,) * 20, (1.0,) * 19 + (50.0,))
    assert verdict(even) is Status.PASS
    drifting = Timing(tuple(float(i) for i in range(1, 21)), tuple(float(i) for i in range(1, 21)))
    assert verdict(drifting) is Status.PASS
    assert verdict(Timing((1.0,) * 20, (1.05,) * 20)) is Status.REGRESSION


def test_what_cannot_be_told_does_not_pass() -> None:
    """A rise of 5 %, twice the bound, is neither shown nor ruled out by ten pairs that scatter by as much."""
    few = Timing((1.0,) * 10, (1.09, 1.08, 0.93, 0.98, 1.03, 0.9, 1.07, 0.95, 1.08, 0.97))
    [found] = judge_timings(GATE, {"a": few}, 0.01)
    assert found.status is Status.INCOMPLETE
    assert (
        found.reason == "+0.7 % over 10 turns; 6.0 % cannot be ruled out: too few turns or too noisy for a "
        "bound of 2.5 %"
    )
    wide = Gate(metric="timings", max_rise_relative=0.05)
    assert verdict(few, wide) is Status.PASS, "a bound of 5 % asks only that 10 % be ruled out"
    assert (
        "nothing can be ruled out"
        in judge_timings(GATE, {"a": Timing((1.0,) * 2, (1.0,) * 2)}, 0.01)[0].reason
    )


@pytest.mark.parametrize(("count", "significance"), [(10, 0.01), (12, 0.0005), (40, 0.01), (60, 0.0003)])
def test_the_lower_bound_is_that_of_scipys_signed_rank_test(count: int, significance: float) -> None:
    """Ratios are significantly above what is a little lower than the bound, and not above what is higher."""
    rng = random.Random(count)
    logs = [math.log(rng.lognormvariate(0.02, 0.05)) for _ in range(count)]
    rise = rise_of([math.exp(value) for value in logs], significance)

    def p(level: float) -> float:
        moved = [value - math.log(level) for value in logs]
        return float(stats.wilcoxon(moved, alternative="greater", method="exact").pvalue)

    assert p(rise.least * (1 - 1e-9)) <= significance < p(rise.least * (1 + 1e-9))
    middle = statistics.median((a + b) / 2 for i, a in enumerate(logs) for b in logs[i:])
    assert math.log(rise.middle) == pytest.approx(middle)


def test_too_few_pairs_have_no_bounds() -> None:
    assert rise_of([1.0, 1.1, 1.2], 0.01, missed=0.2) == pytest.approx(
        (0.0, math.sqrt(1.1 * math.sqrt(1.2)), 1.2)
    )
    assert rise_of([1.0, 1.1, 1.2], 0.01).most == float("inf")


def test_each_look_has_its_share_of_the_error() -> None:
    pairs = Timing((1.0,) * 10, (1.05,) * 9 + (0.97,))
    assert verdict(pairs, level=0.004) is Status.REGRESSION
    assert verdict(pairs._replace(looks=3), level=0.004) is not Status.REGRESSION


def test_a_look_that_would_pass_alone_does_not_pass_as_one_of_three() -> None:
    """Ruling out twice the bound has its share too: SciPy's p-value of a rise of 5 % is 0.039."""
    ratios = (0.93, 1.06, 0.97, 1.08, 0.98, 1.055, 0.95, 1.075, 1.0, 1.02, 0.99, 1.09)
    pairs = Timing((1.0,) * 12, ratios)
    left = [math.log(ratio / 1.05) for ratio in ratios]
    p = stats.wilcoxon(left, alternative="less", method="exact").pvalue
    assert 0.05 / 3 < p < 0.05
    assert verdict(pairs) is Status.PASS
    assert verdict(pairs._replace(looks=3)) is Status.INCOMPLETE


def test_many_entries_share_the_error() -> None:
    timings = {str(i): Timing((1.0,) * 12, (1.05,) * 10 + (0.97, 0.98)) for i in range(10)}
    one, ten = judge_timings(GATE, {"0": timings["0"]}, 0.01), judge_timings(GATE, timings, 0.01)
    assert one[0].status is Status.REGRESSION and {v.status for v in ten} == {Status.INCOMPLETE}


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"a": [1]}, "expected reference and run"),
        ({"a": {"reference": [1.0] * 3, "run": [1.0] * 3}}, "at least 10 times"),
        ({"a": {"reference": [1.0] * 10, "run": [0.0] * 10}}, "positive numbers"),
        ({"a": {"reference": [1.0] * 10, "run": [1.0] * 11}}, "not in turns"),
        ({"a": {"reference": [1.0] * 10, "run": [1.0] * 10, "looks": 0}}, "looks: expected a whole number"),
        ({"a": {"reference": [1.0] * 10, "run": [1.0] * 10, "times": 1}}, "expected reference and run"),
    ],
)
def test_what_is_no_file_of_turns_is_refused(tmp_path: Path, data: Any, words: str) -> None:
    path = tmp_path / "t.json"
    path.write_text(json.dumps(data))
    with pytest.raises(UserError, match=words):
        read_timings(path)
    with pytest.raises(UserError, match="no such file"):
        read_timings(tmp_path / "nothing.json")


def test_the_gate_in_a_file() -> None:
    gates = parse_gates({"gates": [{"metric": "timings", "max_rise_relative": 0.025, "rows": ["a"]}]})
    assert judge_timings(gates.gates[0], {"a": turns(0.0, 0), "b": turns(0.5, 0)}, 0.01)[0].row == "a"
    with pytest.raises(UserError, match="unknown row of a gate on timings"):
        judge_timings(gates.gates[0], {"b": turns(0, 0)}, 0.01)
    for wrong in (
        {"max": 3},
        {"max_rise_relative": 0.1, "max": 1},
        {"over": "reference", "max_rise_relative": 1},
    ):
        with pytest.raises(UserError):
            parse_gates({"gates": [{"metric": "timings", **wrong}]})


def test_check_judges_timings_beside_the_run(call, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    from evalharness.results import write_results
    from tests.evalharness.test_report import full

    write_results(full(), tmp_path / "r.json")
    (tmp_path / "gates.yaml").write_text("gates:\n  - {metric: timings, max_rise_relative: 0.025}\n")
    command = ["check", "r.json", "--against", "r.json", "--gates", "gates.yaml"]
    assert call(*command).code == 4, "INCOMPLETE: asked for, but no times given"
    for slower, code in ((0.0, 0), (0.05, 1)):
        timing = turns(slower, 1, noise=0.01)
        times = {"step": {"reference": list(timing.reference), "run": list(timing.run)}}
        (tmp_path / "t.json").write_text(json.dumps(times))
        done = call(*command, "--timings", "t.json")
        assert done.code == code, done.out
