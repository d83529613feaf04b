"""``check``: each status by hand, gates read strictly, JUnit and Markdown, exit codes, mistakes."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from scipy import stats as scipy_stats

from evalharness.compare.selection import Side
from evalharness.errors import UserError
from evalharness.gates.checking import check
from evalharness.gates.formats import junit, markdown
from evalharness.gates.spec import DEFAULT, Gate, Gates, parse_gates, read_gates
from evalharness.gates.status import CheckReport, Status
from evalharness.results import CellRecord, ScoreRow, build_results, write_results
from tests.processor import run_within

SHIPPED = Path(__file__).parents[2] / "results" / "tinyworld"
DIMENSIONS = ["color", "scene"]
N = 40
LEVELS = np.random.default_rng(0).uniform(0.5, 0.9, (2, N))
PROFILE = {"step_ms": 100.0, "peak_mem_mb": 30.0, "weights_mb": 4.0}
HARDWARE = {"cpu": "one", "cores": 2, "gpus": []}


def cell(method: str = "lsq", seed: int = 0, drop: float = 0.0, **changes: Any) -> CellRecord:
    """Colour is lower by ``drop`` on average, by more on some prompts than on others."""
    is_reference = method == "bf16"
    shift = drop * (1 + 0.5 * np.sin(np.arange(N)) - 0.5 * np.sin(np.arange(N)).mean())
    values = {"color": LEVELS[0] - shift, "scene": LEVELS[1]}
    fields: dict[str, Any] = {
        "cell_id": f"{method}-s{seed}" if is_reference else f"{method}-w3a3-s{seed}",
        "model": "toy",
        "protocol": "toy",
        "method": method,
        "w_bits": 16 if is_reference else 3,
        "a_bits": 16 if is_reference else 3,
        "seed": seed,
        "source": "reference" if is_reference else "computed",
        "execution": "fake",
        "n_expected": dict.fromkeys(DIMENSIONS, N),
        "scores": {
            d: [ScoreRow(f"{i:04d}", 0, float(v)) for i, v in enumerate(vs)] for d, vs in values.items()
        },
        "n_videos_expected": N,
        "n_videos_ok": N,
        "n_failed": 0,
        "profile": PROFILE,
    }
    return CellRecord(**(fields | changes))


def side(*cells: CellRecord, config: dict[str, Any] | None = None, cpu: str = "one") -> Side:
    manifest = {"config": {"settings.steps": 20} | (config or {}), "hardware": HARDWARE | {"cpu": cpu}}
    names = list(cells[0].n_expected)
    results = build_results(
        cells,
        protocol=cells[0].protocol,
        dimensions=names,
        percent=True,
        label="toy scores",
        manifest=manifest,
    )
    return Side("here", results)


def judge(run: Side, reference: Side, *gates: Gate, **changes: Any) -> CheckReport:
    return check(run, reference, Gates(gates=gates, **changes) if gates else DEFAULT)


def only(report: CheckReport) -> Any:
    [verdict] = report.verdicts
    return verdict


def test_the_same_run_passes_every_default_gate() -> None:
    report = judge(side(cell()), side(cell()))
    assert report.status is Status.PASS
    assert [v.metric for v in report.verdicts] == ["mean", "color", "scene", "weights_mb"]


def test_a_drop_beyond_the_bound_is_a_regression_and_a_rise_never_is() -> None:
    gate = Gate(metric="color", max_drop=2.0)
    worse = only(judge(side(cell(drop=0.03)), side(cell()), gate))
    assert worse.status is Status.REGRESSION
    assert (worse.reference - worse.run) == pytest.approx(3.0)
    assert only(judge(side(cell(drop=0.015)), side(cell()), gate)).status is Status.PASS
    assert only(judge(side(cell(drop=-0.3)), side(cell()), gate)).status is Status.PASS


def test_absolute_and_relative_bounds_must_both_be_passed() -> None:
    level = 100 * float(LEVELS[0].mean())
    run, reference = side(cell(drop=0.03)), side(cell())
    for share, status in ((2.9 / level, Status.REGRESSION), (3.1 / level, Status.PASS)):
        gate = Gate(metric="color", max_drop=2.0, max_drop_relative=share)
        assert only(judge(run, reference, gate)).status is status


def test_a_drop_must_be_significant_unless_told_otherwise() -> None:
    noise = np.random.default_rng(1).normal(0, 0.2, N)
    noise -= noise.mean() + 0.03
    rows = [ScoreRow(f"{i:04d}", 0, float(v)) for i, v in enumerate(LEVELS[0] + noise)]
    noisy = cell()
    noisy = replace(noisy, scores={**noisy.scores, "color": rows})
    gate = Gate(metric="color", max_drop=2.0)
    verdict = only(judge(side(noisy), side(cell()), gate))
    assert verdict.status is Status.PASS
    assert verdict.p == pytest.approx(scipy_stats.ttest_1samp(noise, 0, alternative="less").pvalue)
    assert "not significant" in verdict.reason
    assert only(judge(side(noisy), side(cell()), gate, significance=None)).status is Status.REGRESSION


def test_floors_and_ceilings_hold_whatever_the_reference_has() -> None:
    low = only(judge(side(cell()), side(cell()), Gate(metric="color", min=90)))
    high = only(judge(side(cell()), side(cell()), Gate(metric="step_ms", max=99)))
    assert (low.status, high.status) == (Status.REGRESSION, Status.REGRESSION)
    assert "below the floor of 90" in low.reason and "above the ceiling of 99" in high.reason


@pytest.mark.parametrize(
    ("step", "status"), [(104.9, Status.PASS), (105.1, Status.REGRESSION), (50.0, Status.PASS)]
)
def test_a_slower_step(step: float, status: Status) -> None:
    gate = Gate(metric="step_ms", max_rise_relative=0.05)
    run = side(cell(profile={**PROFILE, "step_ms": step}))
    assert only(judge(run, side(cell()), gate)).status is status


def test_a_time_from_other_hardware_is_not_judged_unless_it_is_relative() -> None:
    quick = {**PROFILE, "step_ms": 50.0}
    reference = side(cell("bf16"), cell())
    run = side(cell("bf16", profile=quick), cell(profile={**PROFILE, "step_ms": 51.0}), cpu="two")
    gate = Gate(metric="step_ms", max_rise_relative=0.05, rows=("lsq-w3a3",))
    assert only(judge(run, reference, gate)).status is Status.RECIPE_MISMATCH
    assert only(judge(run, reference, gate, same_hardware=False)).status is Status.PASS
    relative = replace(gate, over="reference")
    assert only(judge(run, reference, relative)).run == pytest.approx(1.02)
    slow = side(cell("bf16", profile=quick), cell(profile={**PROFILE, "step_ms": 53.0}), cpu="two")
    assert only(judge(slow, reference, relative)).status is Status.REGRESSION
    assert judge(slow, reference, relative).notes == ["cpu differs: one in the reference, two in the run"]


def test_another_recipe_is_not_judged_at_all() -> None:
    report = judge(side(cell(), config={"settings.steps": 10}), side(cell()))
    assert (report.status, report.status.exit_code) == (Status.RECIPE_MISMATCH, 3)
    assert "settings.steps" in only(report).reason
    ignoring = Gates(gates=DEFAULT.gates, ignore_recipe=("settings.steps",))
    assert check(side(cell(), config={"settings.steps": 10}), side(cell()), ignoring).status is Status.PASS


def test_another_protocol_or_other_dimensions_are_another_recipe() -> None:
    other = replace(cell(), protocol="other")
    assert "protocol" in only(judge(side(other), side(cell()))).reason
    one = cell()
    one = replace(one, scores={"color": one.scores["color"]}, n_expected={"color": N})
    assert "dimensions" in only(judge(side(one), side(cell()))).reason


def test_other_options_are_another_recipe_of_that_row() -> None:
    report = judge(side(cell(options={"rank": 8})), side(cell(options={"rank": 16})))
    assert report.status is Status.RECIPE_MISMATCH
    assert {v.reason for v in report.verdicts} == {"asked for other options: rank"}
    resolved = side(cell(method_config={"new_option": 1}))
    assert judge(resolved, side(cell())).status is Status.PASS, "a new option's default is no other recipe"


@pytest.mark.parametrize("seeds", ["same", "any"])
def test_missing_scores_rows_seeds_and_costs_are_incomplete(seeds: str) -> None:
    short = cell()
    short = replace(short, scores={**short.scores, "scene": short.scores["scene"][3:]})
    gates = (Gate(metric="mean", max_drop=1.0), Gate(metric="weights_mb", max=9.0))
    report = judge(side(short), side(cell()), *gates, seeds=seeds)
    assert (report.status, report.status.exit_code) == (Status.INCOMPLETE, 4)
    assert {v.reason for v in report.verdicts} == {"scores that the reference has are missing: scene 3"}
    no_row = judge(side(cell("rtn")), side(cell()), *gates, seeds=seeds)
    assert {v.reason for v in no_row.verdicts} == {"the run has no such row"}
    unmeasured = judge(side(cell(profile=None)), side(cell()), *gates, seeds=seeds)
    assert [v.status for v in unmeasured.verdicts] == [Status.PASS, Status.INCOMPLETE]
    assert "the run did not measure it" in unmeasured.verdicts[1].reason


def test_a_limited_reference_asks_for_what_it_has() -> None:
    limited = cell()
    limited = replace(limited, scores={d: rows[:8] for d, rows in limited.scores.items()}, n_videos_ok=8)
    assert judge(side(limited), side(limited)).status is Status.PASS
    assert judge(side(cell()), side(limited)).status is Status.PASS
    assert judge(side(limited), side(cell())).status is Status.INCOMPLETE


def test_seeds_must_be_the_same_unless_any_will_do() -> None:
    gate = Gate(metric="mean", max_drop=1.0)
    run, reference = side(cell(seed=1)), side(cell(seed=0))
    assert "lacks seeds [0]" in only(judge(run, reference, gate)).reason
    assert only(judge(run, reference, gate, seeds="any")).status is Status.PASS
    worse = side(cell(seed=1, drop=0.1), cell(seed=2))  # colour by 5 on average of both, the mean by 2.5
    verdict = only(judge(worse, reference, gate, seeds="any"))
    assert verdict.reference - verdict.run == pytest.approx(2.5)
    assert verdict.status is Status.REGRESSION


def test_a_proven_regression_beats_what_is_missing() -> None:
    run = side(cell(drop=0.1), cell("rtn"))
    report = judge(run, side(cell(), cell("rtn"), cell("qvgen")))
    assert {v.status for v in report.verdicts} == {Status.PASS, Status.REGRESSION, Status.INCOMPLETE}
    assert report.status is Status.REGRESSION


def test_one_prompt_cannot_be_tested() -> None:
    single = cell()
    single = replace(single, scores={d: rows[:1] for d, rows in single.scores.items()})
    gate = Gate(metric="color", max_drop=1.0)
    assert "one prompt only" in only(judge(side(single), side(single), gate)).reason
    assert only(judge(side(single), side(single), gate, significance=None)).status is Status.PASS


@pytest.mark.parametrize(
    ("gate", "words"),
    [
        (Gate(metric="colour", max_drop=1.0), "did you mean 'color'"),
        (Gate(metric="mean", max_drop=1.0, rows=("lsk-w3a3",)), "did you mean 'lsq-w3a3'"),
    ],
)
def test_a_misspelt_gate_does_not_pass(gate: Gate, words: str) -> None:
    with pytest.raises(UserError, match=words):
        judge(side(cell()), side(cell()), gate)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (None, "expected a mapping with a list called gates"),
        ({"gates": []}, "the list is empty"),
        ({"gates": [3]}, "gate 1: expected a mapping with a metric"),
        ({"gates": [{"metric": "mean"}]}, "give at least one of max_drop"),
        ({"gates": [{"metric": "mean", "max_rise": 1}]}, "max_rise does not bound a quality"),
        ({"gates": [{"metric": "step_ms", "max_drop": 1}]}, "max_drop does not bound a cost"),
        ({"gates": [{"metric": "mean", "max_dorp": 1}]}, "did you mean 'max_drop'"),
        ({"gates": [{"metric": "mean", "max_drop": "1"}]}, "expected float | null"),
        ({"gates": [{"metric": "mean", "max_drop": True}]}, "expected float | null"),
        ({"gates": [{"metric": "mean", "max_drop": -1}]}, "expected a number from 0"),
        ({"gates": [{"metric": "mean", "max_drop": float("nan")}]}, "expected a number from 0"),
        ({"gates": [{"metric": "mean", "max_drop": 1, "over": "reference"}]}, "over divides a cost"),
        ({"gates": [{"metric": "step_ms", "max": 1, "over": "bf16"}]}, "expected reference"),
        ({"gates": [{"metric": "mean", "max_drop": 1, "rows": [3]}]}, "expected a list of names"),
        ({"gates": [{"metric": "mean", "max_drop": 1}], "significance": 2}, "expected between 0 and 1"),
        ({"gates": [{"metric": "mean", "max_drop": 1}], "seeds": "all"}, "expected one of same, any"),
        ({"gates": [{"metric": "mean", "max_drop": 1}], "same_hardware": 1}, "expected bool"),
        ({"gates": [{"metric": "mean", "max_drop": 1}], "signficance": 0.1}, "did you mean 'significance'"),
        (
            {"gates": [{"metric": "mean", "max_drop": 1}] * 2},
            "gates 1 and 2 both give max_drop of mean; leave one",
        ),
        (
            {
                "gates": [
                    {"metric": "color", "min": 60, "rows": ["a-w3a3", "b-w3a3"]},
                    {"metric": "mean", "max_drop": 1},
                    {"metric": "color", "min": 50, "max_drop": 1, "rows": ["b-w3a3", "a-w3a3"]},
                ]
            },
            "gates 1 and 3 both give min of color for a-w3a3, b-w3a3; leave one",
        ),
    ],
)
def test_gates_are_read_strictly(data: Any, words: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_gates(data)
    assert words in str(caught.value)


def test_gates_on_one_metric_that_say_different_things_are_taken() -> None:
    bounds: list[dict[str, Any]] = [{"max_drop": 1}, {"min": 60}, {"max_drop": 2, "rows": ["a-w3a3"]}]
    step = [{"metric": "step_ms", "max": 1.5}, {"metric": "step_ms", "max": 1.5, "over": "reference"}]
    gates = parse_gates({"gates": [*({"metric": "mean", **each} for each in bounds), *step]}).gates
    assert len(gates) == 5


def test_a_key_to_ignore_that_no_recipe_has_is_refused() -> None:
    """Misspelt, it would ignore nothing, and the check would be refused for another reason."""
    here, there = side(cell(options={"rank": 8})), side(cell(options={"rank": 16}))

    def ignoring(*keys: str) -> Gates:
        return Gates(gates=DEFAULT.gates, ignore_recipe=keys)

    with pytest.raises(UserError, match="unknown key in ignore_recipe 'nope'"):
        check(here, there, ignoring("nope"))
    with pytest.raises(UserError, match="did you mean 'model_fingerprint'"):
        check(here, there, ignoring("rank", "model_fingerprnt"))
    assert check(here, there, ignoring("rank", "settings.frames", "w_bits")).status is Status.PASS
    plain = side(cell(method_config={"recipe": {"steps": 80}}))  # one file of gates for runs with and without
    assert check(plain, plain, ignoring("recipe.steps")).status is Status.PASS


def test_a_file_of_gates(tmp_path: Path) -> None:
    path = tmp_path / "gates.yaml"
    path.write_text(
        "significance: null\nseeds: any\nignore_recipe: [model_fingerprint]\n"
        "gates:\n  - {metric: mean, max_drop: 1}\n"
        "  - {metric: step_ms, over: reference, max: 1.5, rows: a-w3a3}\n"
    )
    assert read_gates(path) == Gates(
        gates=(
            Gate(metric="mean", max_drop=1),
            Gate(metric="step_ms", over="reference", max=1.5, rows=("a-w3a3",)),
        ),
        significance=None,
        seeds="any",
        ignore_recipe=("model_fingerprint",),
    )
    path.write_text("gates: [")
    with pytest.raises(UserError, match="not a YAML file"):
        read_gates(path)
    path.write_text("!!python/object/apply:os.system ['true']")
    with pytest.raises(UserError, match="not a YAML file"):
        read_gates(path)


def test_junit_counts_failures_and_errors() -> None:
    report = judge(side(cell(drop=0.1)), side(cell(), cell("qvgen")))
    root = ElementTree.fromstring(junit(report))
    [suite] = root
    failures, errors = suite.findall("testcase/failure"), suite.findall("testcase/error")
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("8", "2", "4")
    assert (len(failures), len(errors)) == (2, 4)
    assert {e.get("type") for e in errors} == {"INCOMPLETE"}
    assert failures[0].get("message", "").count("beyond max_drop") == 1


def test_markdown_shows_what_failed_first_and_escapes() -> None:
    run = replace(side(cell(drop=0.1)), given="a|<b>")
    lines = markdown(judge(run, side(cell()))).splitlines()
    assert lines[0] == "# REGRESSION: a\\|&lt;b&gt; against here"
    table = [line for line in lines if line.startswith("| ")][1:]
    assert [line.split(" | ")[0] for line in table] == [
        "| **REGRESSION**",
        "| **REGRESSION**",
        "| PASS",
        "| PASS",
    ]


def test_exit_codes_and_files(tmp_path: Path, call: Callable[..., Any]) -> None:
    for name, found in (("good", side(cell())), ("bad", side(cell(drop=0.1)))):
        (tmp_path / name).mkdir()
        write_results(found.results, tmp_path / name / "results.json")
    assert call("check", "good", "--against", "good").code == 0
    result = call("check", "bad", "--against", "good", "--junit", "j.xml", "--markdown", "s.md")
    assert result.code == 1
    assert result.out.startswith("REGRESSION: bad against good\n")
    assert (tmp_path / "s.md").read_text().startswith("# REGRESSION")
    assert ElementTree.parse(tmp_path / "j.xml").getroot().tag == "testsuites"
    record = json.loads(call("check", "bad", "--against", "good:lsq-w3a3", "--json").out)
    assert (record["status"], record["verdicts"][0]["status"]) == ("REGRESSION", "REGRESSION")
    for arguments, words in (
        (["nowhere", "--against", "good"], "nowhere: no such run folder"),
        (["good", "--against", "nowhere"], "nowhere: no such run folder"),
        (["good"], "--against"),
        (["good", "--against", "good", "--gates", "none.yaml"], "none.yaml: no such file"),
        (["good", "--against", "good:rtn-w3a3"], "unknown cell of good"),
    ):
        failed = call("check", *arguments)
        assert (failed.code, failed.out) == (2, "")
        assert words in failed.errors[0]


def test_the_shipped_table_in_under_three_seconds_and_without_torch() -> None:
    code = (
        "import sys; from evalharness.cli.main import main; "
        "code = main(sys.argv[1:]); print('@' + ','.join(sys.modules)); sys.exit(code)"
    )
    shipped = str(SHIPPED)
    result = run_within(3.0, [sys.executable, "-c", code, "check", shipped, "--against", shipped])
    assert result.stdout.startswith("PASS")
    assert not {"torch", "pandas", "diffusers"} & set(result.stdout.rpartition("@")[2].split(","))


@pytest.mark.parametrize("seeds", [(0,), (0, 1), (0, 1, 2)])
def test_seeds_that_differ_hide_no_drop_of_the_same_seeds(seeds: tuple[int, ...]) -> None:
    """The drop is of 2 to 20 points by seed; whether other seeds would drop too is not what a gate asks."""
    drops = dict(zip((0, 1, 2), (0.02, 0.2, 0.1), strict=True))
    report = judge(
        side(*(cell(seed=seed, drop=drops[seed]) for seed in seeds)),
        side(*(cell(seed=seed) for seed in seeds)),
        Gate(metric="color", max_drop=0.5),
    )
    verdict = only(report)
    assert verdict.status is Status.REGRESSION
    assert verdict.p is not None and verdict.p < 1e-6
