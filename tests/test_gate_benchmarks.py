"""What the gate's own measurements claim, on the scores that are stored beside them, and their arithmetic."""

from __future__ import annotations

import json
import math
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest

from benchmarks import planted_sets
from benchmarks.false_alarms import alarms, resampled
from benchmarks.interval_coverage import document, row
from benchmarks.looks import cases, errors
from benchmarks.looks import document as looks_document
from benchmarks.planted import ARMS, DRAWS, HARMLESS, judge_scores, planted, subset
from benchmarks.planted_step import judge
from benchmarks.power import MIXES
from evalharness.compare.selection import Side, rows_of
from evalharness.effects import Components
from evalharness.gates.spec import Gates, read_gates
from evalharness.power import Design, detectable, simulated_power
from evalharness.protocols.tinyworld import TinyWorldProtocol
from evalharness.results import read_results
from evalharness.seeds import video_seed

ROOT = Path(__file__).parents[1]
STATISTICS = ROOT / "results" / "statistics"


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize("arm", [arm for arm in ARMS[1:] if arm not in HARMLESS])
def test_each_planted_regression_is_caught_every_time(arm: str) -> None:
    found = judge_scores(STATISTICS / "planted", [arm])[arm]
    assert found["regressions"] == DRAWS == 20
    assert found["mean_drop"][0] > 2.0


def test_the_same_arithmetic_again_never_fails() -> None:
    found = judge_scores(STATISTICS / "planted", ["again"])["again"]
    assert (found["passes"], found["mean_drop"]) == (20, [0.0, 0.0, 0.0])


def test_what_is_planted_is_gone_afterwards() -> None:
    """Arms that are made in one process must not add up."""
    import torch

    import qvgen.linear
    import qvgen.quantizers

    codes, scale, zero_point = torch.tensor([[3.0, 5.0]]), torch.tensor([[0.5]]), torch.tensor([[2.0]])
    plain = qvgen.linear.dequantize, qvgen.quantizers.initial_scale
    expected = {"sign": [2.5, 3.5], "zero": [1.5, 2.5], "reordered": [0.5, 1.5], "clip": [0.5, 1.5]}
    for arm, values in expected.items():
        with planted(arm):
            assert qvgen.linear.dequantize(codes, scale, zero_point).tolist() == [values]
            assert (qvgen.quantizers.initial_scale is plain[1]) == (arm != "clip")
        assert (qvgen.linear.dequantize, qvgen.quantizers.initial_scale) == plain


def test_sets_share_no_video_and_spread_over_the_dimensions() -> None:
    protocol = TinyWorldProtocol()
    prompts, names = list(protocol.prompts()), list(protocol.metrics)
    sets = [planted_sets.drawn(prompts, names, number) for number in range(planted_sets.SETS)]
    assert all(len({prompt.id for prompt in each}) == planted_sets.PROMPTS for each in sets)
    assert len({tuple(prompt.id for prompt in each) for each in sets}) == planted_sets.SETS
    assert min(sum(name in prompt.dimensions for prompt in each) for each in sets for name in names) >= 2
    seeds = [
        {video_seed(planted_sets.base_seed(arm, number), prompt.id, 0) for prompt in each}
        for number, each in enumerate(sets)
        for arm in (planted_sets.CLEAN, planted_sets.NOOP)
    ]
    assert len(set().union(*seeds)) == sum(map(len, seeds)) == 2 * 20 * 32
    assert len(planted_sets.drawn(prompts, names, 0, 16)) == 16
    assert {planted_sets.base_seed(arm, 3) for arm in planted_sets.ARMS} == {3, 1003}


def test_units_are_shared_without_rest() -> None:
    shared = [unit for part in range(8) for unit in planted_sets.units(20, f"{part}/8")]
    assert sorted(shared) == sorted(planted_sets.units(20, "0/1")) and len(set(shared)) == len(shared) == 120


@pytest.mark.parametrize("part", ["x", "1/0", "2/2", "1/"])
def test_a_part_that_is_none_is_one_line(part: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        planted_sets.main(["make", "--part", part])
    assert ended.value.code == 2 and f"--part {part}: expected K/N" in capsys.readouterr().err


def test_only_whole_sets_made_alike_are_judged(tmp_path: Path) -> None:
    """Scores by hand: the arms fall by 0, 0.1, 30, 30 and 10 points at each of eight prompts."""
    falls = {"no-op": 0.0, "reordered": 0.001, "sign": 0.3, "zero": 0.3, "clip": 0.1}
    for number, arm in [*((0, arm) for arm in planted_sets.ARMS), (1, "clean")]:
        scores = {f"{p:04d}": round(0.8 + 0.01 * p - falls.get(arm, 0) - 0.0001 * p**2, 5) for p in range(8)}
        record = {"arm": arm, "set": number, "device": "cpu", "steps": 4, "batch": 4, "prompts": 8}
        record["scores"] = {"scene": scores, "color": scores}
        (tmp_path / f"{arm}-{number}.json").write_text(json.dumps(record))
    found = planted_sets.collected(tmp_path)
    assert found["sets"] == [0] and found["device"] == ["cpu"]
    arms = planted_sets.judged(found)
    assert {arm: said["regressions"] for arm, said in arms.items()} == {
        **dict.fromkeys(("no-op", "reordered"), 0),
        **dict.fromkeys(("sign", "zero", "clip"), 1),
    }
    assert [arms[arm]["mean_drop"][1] for arm in falls] == pytest.approx([0.0, 0.1, 30.0, 30.0, 10.0])
    assert json.loads(planted_sets.document({"arms": arms, **found})) == {"arms": arms, **found}
    (tmp_path / "clean-2.json").write_text(json.dumps({**record, "set": 2, "steps": 20}))
    with pytest.raises(ValueError, match="made in 2 ways"):
        planted_sets.collected(tmp_path)
    (tmp_path / "clean-2.json").unlink()
    for arm in planted_sets.ARMS:  # sets may be of two devices, the arms of one may not
        other = json.loads((tmp_path / f"{arm}-0.json").read_text())
        (tmp_path / f"{arm}-1.json").write_text(json.dumps({**other, "set": 1, "device": "cuda"}))
    assert planted_sets.collected(tmp_path)["device"] == ["cpu", "cuda"]
    (tmp_path / "clip-1.json").write_text(json.dumps({**other, "set": 1}))
    with pytest.raises(ValueError, match="3 sets and devices"):
        planted_sets.collected(tmp_path)


@pytest.mark.parametrize(("name", "steps"), [("planted_sets", 4), ("planted_sets-all_steps", 20)])
def test_the_published_sets_are_judged_as_they_say(name: str, steps: int) -> None:
    record = json.loads((STATISTICS / f"{name}.json").read_text())
    arms = planted_sets.judged(record)
    assert arms == record["arms"] and record["steps"] == steps
    assert record["half"] == planted_sets.halved(record) and record["half"]["prompts"] == 16
    count = len(record["sets"])
    assert count == planted_sets.SETS
    assert all(arms[arm]["regressions"] == count for arm in ("sign", "zero"))
    assert arms["clip"]["regressions"] > count / 2 and arms["clip"]["mean_drop"][0] > 2.0
    table = (ROOT / "docs/ci.md").read_text().split(f"{name}.json)")[1].split("\n\n")[1]
    words = ("wrong sign", "zero point dropped", "weights clipped", "none:", "`s c - s z`")
    for arm, first in zip(("sign", "zero", "clip", "no-op", "reordered"), words, strict=True):
        [line] = [line for line in table.splitlines() if line.startswith(f"| {first}")]
        falls = ", ".join(f"{fall:.1f}" for fall in arms[arm]["mean_drop"])
        assert line.endswith(f"| {falls} | {arms[arm]['regressions']} of {count} |")
    clean, again = (record["scores"][arm] for arm in ("clean", "no-op"))
    pairs = zip(clean, again, strict=True)
    assert not any(one["imaging_quality"] == other["imaging_quality"] for one, other in pairs)


def test_half_of_the_prompts_would_not_do() -> None:
    record = json.loads((STATISTICS / "planted_sets.json").read_text())
    arms, half, count = record["arms"], record["half"], len(record["sets"])
    found = {arm: said["regressions"] for arm, said in half["arms"].items()}
    assert found["sign"] == found["zero"] == count and found["clip"] < arms["clip"]["regressions"]
    text = " ".join((ROOT / "docs/ci.md").read_text().split())
    unchanged = found["no-op"] + found["reordered"]
    assert unchanged == 0 and f"alarm in none of the {2 * count} that are unchanged" in text
    assert f"tell it in {found['clip']} of {count} sets" in text
    other = json.loads((STATISTICS / "planted_sets-all_steps.json").read_text())["half"]["arms"]
    assert (
        f"with 16 it is {other['clip']['regressions']} of {other['clip']['sets']}, and one of the 40" in text
    )
    assert other["no-op"]["regressions"] + other["reordered"]["regressions"] == 1
    changes = " ".join((ROOT / "CHANGELOG.md").read_text().split())
    assert (
        f"({found['clip']} of {count} independent sets; {arms['clip']['regressions']} of {count} now)"
        in changes
    )


def test_half_of_a_set_is_what_a_set_of_that_size_would_be() -> None:
    """Scores by hand: one that falls by 40 points, but only where the half's prompts are not."""
    protocol = TinyWorldProtocol()
    prompts, names = list(protocol.prompts()), list(protocol.metrics)
    [all_of, half] = ([p.id for p in planted_sets.drawn(prompts, names, 3, n)] for n in (32, 16))
    assert set(half) < set(all_of)
    clean = {name: {prompt: 0.6 + 0.001 * n for n, prompt in enumerate(all_of)} for name in names}
    fallen = {
        name: {prompt: value - (0.0 if prompt in half else 0.4) for prompt, value in of.items()}
        for name, of in clean.items()
    }
    record = {"prompts": 32, "sets": [3], "scores": {arm: [clean] for arm in planted_sets.ARMS}}
    record["scores"] = {**record["scores"], "clip": [fallen]}
    assert planted_sets.judged(record)["clip"]["regressions"] == 1
    found = planted_sets.halved(record)
    assert found["prompts"] == 16 and found["arms"]["clip"]["mean_drop"] == [0.0, 0.0, 0.0]
    assert found["arms"]["clip"]["regressions"] == 0


def test_a_resampled_run_takes_another_seed_for_every_prompt() -> None:
    results = read_results(Path("results/tinyworld/cpu/results.json"))
    run, reference = resampled(results, np.random.default_rng(0), 16)
    cell, other = run.cell("rtn-w3a3-s0"), reference.cell("rtn-w3a3-s0")
    rows, others = ({r.prompt_id: r.value for r in c.scores["scene"]} for c in (cell, other))
    assert len(rows) == 16 and rows.keys() == others.keys()
    seeds = [{r.prompt_id: r.value for r in results.cell(f"rtn-w3a3-s{s}").scores["scene"]} for s in range(3)]
    assert all(rows[prompt] in [seed[prompt] for seed in seeds] for prompt in rows)
    assert all(rows[prompt] != others[prompt] for prompt in rows)


def test_no_more_false_alarms_than_the_significance_allows() -> None:
    """Twenty no-op runs, held row by row: 320 checks; 1 % of them would be three."""
    results, given = (
        read_results(Path("results/tinyworld/cpu/results.json")),
        read_gates(Path("results/ci/gates.yaml")),
    )
    gates = Gates(gates=tuple(g for g in given.gates if not g.is_cost), significance=given.significance)
    found = alarms(results, gates, 20, 16)
    assert found["row_checks"] == 320
    assert found["false_alarms"] <= 1
    assert found["row_false_alarms"] <= 8  # more than eight has a chance of 0.4 % at 1 % each


def test_the_stored_figures_keep_the_promise() -> None:
    record = json.loads((STATISTICS / "false_alarms.json").read_text())
    assert all(entry["false_alarms"] / entry["runs"] < 0.02 for entry in record["significance 0.01"])
    rows = json.loads((STATISTICS / "coverage.json").read_text())
    assert {r["prompts"] for r in rows} == {50, 100, 200, 500, 1000}
    assert (STATISTICS / "coverage.md").read_text() == document(rows)
    for r in rows:  # within what the simulation itself can tell
        assert (
            r["coverage_pct"] + 2 * r["error_pct"] >= 93 and r["coverage_pct"] - 2 * r["error_pct"] <= 97
        ), r


def test_coverage_lines_carry_their_own_error() -> None:
    line = row("bootstrap", 50, 1, "case", 95, 100)
    assert (line["coverage_pct"], line["error_pct"]) == (95.0, 2.18)
    text = document([line, row("bootstrap", 100, 1, "case", 90, 100)])
    assert "bootstrap, 1 seed: 90.0 to 95.0 %, 1 of 2 cases within 93 to 97 %" in text


def test_a_subset_keeps_the_named_prompts_only() -> None:
    results = read_results(STATISTICS / "planted" / "clean" / "results.json")
    there = {row.prompt_id for row in results.cells[0].scores["scene"]}
    assert len(there) == 24
    one = min(there)
    [chosen] = [row for row in rows_of(Side("", subset(results, {one}))) if row.name == "rtn-w4a4"]
    assert {r.prompt_id for rows in chosen.cells[0].scores.values() for r in rows} == {one}


def test_looking_several_times_errs_no_more_often_than_promised() -> None:
    """Of normal, heavy-tailed, drifting and one-sided noise; within three of the simulation's own errors."""
    rows = json.loads((STATISTICS / "looks.json").read_text())
    assert (STATISTICS / "looks.md").read_text() == looks_document(rows)
    assert {row["looks"] for row in rows} == {1, 3, 6} and len(rows) == 72
    for truth, status, promised in (
        ("nothing changed", "REGRESSION", 1.0),
        ("twice the bound slower", "PASS", 5.0),
    ):
        assert all(share <= promised + 3 * error for share, error in errors(rows, truth, status))


def test_the_simulated_looks_are_those_of_the_gate() -> None:
    """Some cases again, with fewer draws: the same shares, as far as chance goes."""
    rows = json.loads((STATISTICS / "looks.json").read_text())
    known = {(row["noise"], row["spread_pct"], row["truth"]): row for row in rows if row["looks"] == 3}
    for found in cases(150, [3]):
        was = known[found["noise"], found["spread_pct"], found["truth"]]
        for key in ("regression_pct", "pass_pct", "incomplete_pct"):
            share = was[key] / 100
            allowed = 450 * math.sqrt((share * (1 - share) + 0.002) / 150)
            assert abs(found[key] - was[key]) <= allowed, (found, was)


def test_the_documents_have_the_figures_of_the_time_gate() -> None:
    text = Path("docs/ci.md").read_text()
    record = json.loads((STATISTICS / "timings.json").read_text())
    for name, label in (("aggregation", "aggregation ("), ("weight_quantizer", "weight quantizer (")):
        [line] = [line for line in text.splitlines() if line.startswith(f"| {label}")]
        cells = [cell.strip() for cell in line.split("|")[2:5]]
        times = record["milliseconds"][name]
        ratios = np.log(np.array(times["no-op"]) / np.array(times["reference"]))
        said = []
        for arm in ("5 % slower", "no-op"):
            found = record[name][arm]
            counts = f"{found['regressions']}, {found['not_told']}, {found['passes']}"
            said.append(f"{counts} ({found['rises_pct'][0]:+.1f} to {found['rises_pct'][-1]:+.1f} %)")
        assert cells == [*said, f"{100 * ratios.std(ddof=1):.1f} %"]
        assert f"({np.median(times['reference']):.2g} ms" in line
        assert f"from {len(ratios)} blocks" in text
    rows = json.loads((STATISTICS / "looks.json").read_text())
    for looks in (1, 3, 6):
        mine = [row for row in rows if row["looks"] == looks]
        alarm = max(errors(mine, "nothing changed", "REGRESSION"))[0]
        passed = max(errors(mine, "twice the bound slower", "PASS"))[0]
        assert f"| {looks} | {alarm:.1f} % | {passed:.1f} % |" in text


def words(path: str) -> str:
    """A document on one line: where its lines end says nothing."""
    return " ".join(Path(path).read_text().split())


@pytest.mark.parametrize(
    ("file", "table", "noop", "count"),
    [
        ("planted.json", 0, ("again", "none, made again"), "draws"),
        ("planted_sets.json", 1, ("no-op", "none: other seeds, order and batches"), "sets"),
    ],
)
def test_the_documents_have_the_figures_of_planted_regressions(
    file: str, table: int, noop: tuple[str, str], count: str
) -> None:
    text = Path("docs/ci.md").read_text()
    arms = json.loads((STATISTICS / file).read_text())["arms"]
    text = text.split("| change | fall of the mean (least, middle, most) |")[1 + table]
    for arm, label in (
        ("sign", "wrong sign of the zero point"),
        ("zero", "zero point dropped"),
        ("clip", "weights clipped to 0.7 of their range"),
        noop,
        ("reordered", "`s c - s z` in place of `s (c - z)`"),
    ):
        [line] = [line for line in text.splitlines() if line.startswith(f"| {label} |")]
        drops, caught = [cell.strip() for cell in line.split("|")[2:4]]
        exact = [
            f"{drop:.1f}".replace("0.0", "0") if drop == 0 else f"{drop:.1f}"
            for drop in arms[arm]["mean_drop"]
        ]
        assert drops.partition(" (")[0] == ", ".join(exact)
        assert caught == f"{arms[arm]['regressions']} of {arms[arm][count]}"


def test_the_documents_have_the_figures_of_false_alarms() -> None:
    text = Path("docs/ci.md").read_text()
    alarms_found = json.loads((STATISTICS / "false_alarms.json").read_text())
    for entry in alarms_found["significance 0.01"]:
        share = f"{100 * entry['row_false_alarms'] / entry['row_checks']:.1f} %"
        assert (
            f"| {entry['prompts']} | {entry['false_alarms']} of {entry['runs']} | "
            f"{entry['row_false_alarms']} of {entry['row_checks']} ({share}) |"
        ) in text
    assert {entry["false_alarms"] for entry in alarms_found["significance None"]} == {100}


def test_the_documents_have_the_figures_of_plan_and_of_the_cases_outside() -> None:
    text = words("docs/ci.md")
    rows = json.loads((STATISTICS / "power.json").read_text())
    assert {row["seeds"] for row in rows} == {1, 2, 3, 4, 5}
    said = []
    for promised in (80, 50):
        shares = [row["found_pct"] for row in rows if row["promised_pct"] == promised]
        assert len(shares) == 40
        said.append(f"{min(shares):.1f} to {max(shares):.1f} %")
    draws = {row["draws"] for row in rows}
    assert draws == {2000}
    assert (
        f"Over 40 designs of one to five seeds, 2000 tables each, these shares were {said[0]} where 80 % was "
        f"promised, {said[1]} where 50 %"
    ) in text
    again = json.loads((STATISTICS / "coverage_again.json").read_text())
    first = json.loads((STATISTICS / "coverage.json").read_text())
    outside = [r for r in first if r["interval"] == "comparison" and not 93 <= r["coverage_pct"] <= 97]
    named = ("prompts", "seeds", "case")
    assert [[r[key] for key in named] for r in again] == [[r[key] for key in named] for r in outside]
    assert {r["draws"] for r in again} == {30_000} and all(93 <= r["coverage_pct"] <= 97 for r in again)
    shown = " and ".join(f"{r['coverage_pct']:.1f}" for r in again)
    assert f"the other two too ({shown} %) when simulated 30,000 times" in text


def test_a_design_of_plan_simulated_again_gives_the_same_share() -> None:
    rows = json.loads((STATISTICS / "power.json").read_text())
    [row] = [r for r in rows if list(r.values())[:4] == [80.0, 3, 50, "even"]]
    design = Design(components=Components(*MIXES["even"]), power=0.8)
    share, _ = simulated_power(design, detectable(design, 50, 3), 50, 3, row["draws"])
    assert 100 * share == pytest.approx(row["found_pct"], abs=0.01)


def test_the_run_of_ci_takes_less_than_five_minutes_on_two_cores() -> None:
    manifest = read_results(Path("results/ci/results.json")).manifest
    assert manifest["hardware"]["cores"] == manifest["config"]["workers"] == 2 and not manifest["history"]
    begun, ended = (datetime.fromisoformat(str(manifest[key])) for key in ("started", "finished"))
    seconds = (ended - begun).total_seconds()
    assert seconds < 300 and f"in {seconds:.0f} seconds on two cores" in words("docs/ci.md")


def test_check_calls_a_slower_step_slower_and_no_other() -> None:
    """The stored times of 20 draws, judged again by the command; each has blocks of its own."""
    record = json.loads((STATISTICS / "planted_step.json").read_text())
    draws = record["milliseconds"]
    assert len(draws) == 20 and len({tuple(times["reference"]) for times in draws}) == 20
    found = judge(record)
    assert found == record["verdicts"]
    assert found["5 % slower"]["exit_codes"] == [1] * 20
    assert found["no-op"]["exit_codes"] == [0] * 20
    text = Path("docs/ci.md").read_text()
    for arm, label in (("5 % slower", "5 % slower (waits for 5 % of each call)"), ("no-op", "unchanged")):
        rises = found[arm]["rises_pct"]
        assert (
            f"| {label} | {found[arm]['regressions']} of 20 | {found[arm]['passes']} of 20 | "
            f"{rises[0]:+.1f} to {rises[-1]:+.1f} % |"
        ) in text
    assert f"each of {record['blocks']} blocks" in words("docs/ci.md")


def test_the_documents_have_the_figures_of_the_faults() -> None:
    text = words("docs/reliability.md")
    records = json.loads((ROOT / "results/reliability/faults.json").read_text())
    kinds = {record["kind"] for record in records}
    same = sum(record["same bytes"] for record in records)
    assert f"--faults {len(records)} --output" in text
    assert (
        f"**{same} of {len(records)} ended with the same bytes**, {len(records) // len(kinds)} of each kind"
        in text
    )
    refusing = [r for r in records if r["kind"] in ("disk full", "permission lost", "input/output error")]
    well = sum(r["exit codes"][0] == 0 for r in refusing)
    assert {r["exit codes"][0] for r in refusing} <= {0, 2}
    assert f"did not matter ({well} of {len(refusing)})" in text
