"""Fake-quantized and packed runs of the same weights: docs/packed.md says of them what their records hold."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from evalharness.effects import Effect, effect, holm, table
from evalharness.stats import Key
from tests.records import ROOT, row

FOLDER = ROOT / "results" / "tinyworld" / "real"
METHODS = ("rtn", "gptq", "viditq", "svdquant", "lsq", "kd-qat", "qvgen")
TWICE = 20 * math.log10(2)
Differences = dict[str, dict[Key, float]]


def text() -> str:
    return " ".join((ROOT / "docs" / "packed.md").read_text().split())


def looked_into(name: str) -> dict[str, Any]:
    cells: dict[str, Any] = json.loads((FOLDER / name).read_text())["cells"]
    return cells


def scored(folder: str = ".") -> dict[str, Any]:
    return {cell["id"]: cell for cell in json.loads((FOLDER / folder / "results.json").read_text())["cells"]}


def differences(cells: dict[str, Any], method: str, bits: int, seed: int) -> Differences:
    """Packed minus fake-quantized, video by video."""
    fake, real = (
        {name: {Key(*key): score for *key, score in rows} for name, rows in cells[cell]["scores"].items()}
        for cell in (f"{label}-w{bits}a{bits}-s{seed}" for label in (method, f"{method}-real"))
    )
    return {
        name: {key: real[name][key] - score for key, score in rows.items()} for name, rows in fake.items()
    }


def one_seed() -> Iterator[tuple[str, int, Effect]]:
    cells = scored()
    for method in METHODS:
        for bits in (8, 4, 3):
            if f"{method}-w{bits}a{bits}-s0" in cells:
                yield method, bits, effect([differences(cells, method, bits, 0)])


def told(value: float | None, lo: float | None, hi: float | None) -> str:
    assert value is not None and lo is not None and hi is not None
    return f"{100 * value:+.2f} [{100 * lo:.2f}, {100 * hi:.2f}]"


def apart(*cells: dict[str, Any]) -> list[float]:
    """By how many dB the packed video is nearer to the fake-quantized one than one rounding moves it."""
    return [video["packed_db"] - video["moved_db"] for cell in cells for video in cell["videos"].values()]


def test_one_seed_of_each_method() -> None:
    looked = {**looked_into("packed_runs.json"), **looked_into("packed_runs-viditq-h200.json")}
    held = 0
    for method, bits, found in one_seed():
        shown = row("packed.md", f"`{method}`")[(8, 4, 3).index(bits)]
        assert shown.strip("*") == told(found.value, found.lo, found.hi)
        assert looked[f"{method}-w{bits}a{bits}-s0"]["scores"]["interval"] == pytest.approx(
            [found.lo, found.hi]
        )
        held += not found.excludes_zero
    assert f"{held} of 18 intervals hold 0" in text()


@pytest.mark.parametrize("bits", [4, 3])
def test_viditq_on_several_seeds(bits: int) -> None:
    cells, once = scored("viditq-seeds"), scored()
    seeds = (0, 1) if bits == 4 else (0, 1, 2)
    each = [differences(cells, "viditq", bits, seed) for seed in seeds]
    looked = looked_into("packed_runs-viditq-h200.json")
    for seed, found in zip(seeds, (effect([one]) for one in each), strict=True):
        shown = row("packed.md", f"seed {seed}")[4 - bits]
        assert shown == (f"**{shown.strip('*')}**" if found.excludes_zero else shown.strip("*"))
        assert shown.strip("*") == told(found.value, found.lo, found.hi)
        recorded = looked[f"viditq-w{bits}a{bits}-s{seed}"]["scores"]["interval"]
        assert recorded == pytest.approx([found.lo, found.hi])
    means = {
        name: {key: float(np.mean([one[name][key] for one in each])) for key in scores}
        for name, scores in each[0].items()
    }
    for words, found in (
        ("mean, these seeds", effect([means])),
        ("mean, seeds drawn at random too", effect(each)),
    ):
        assert row("packed.md", words)[4 - bits] == told(found.value, found.lo, found.hi)
    for label in ("viditq", "viditq-real"):
        cell = f"{label}-w{bits}a{bits}-s0"
        assert cells[cell]["scores"] == once[cell]["scores"], "seed 0 gave every score again"


def test_three_seeds_are_farther_apart_than_prompts_explain() -> None:
    """Mean squares of seeds over those of seeds by prompts, worked out from the table."""
    from scipy import stats

    cells = scored("viditq-seeds")
    each = [differences(cells, "viditq", 3, seed) for seed in (0, 1, 2)]
    z, _ = table(each)
    rest = z - z.mean(axis=0) - z.mean(axis=1)[:, None] + z.mean()
    freedom = 2, 2 * 79
    ratio = 80 * z.mean(axis=1).var(ddof=1) / ((rest**2).sum() / freedom[1])
    errors = [100 * (effect([one]).se or 0.0) for one in each]
    assert (
        f"by {min(errors):.1f} to {max(errors):.1f} (standard errors), and their standard deviation is "
        f"{100 * z.mean(axis=1).std(ddof=1):.1f}: F = {ratio:.1f} with {freedom[0]} and {freedom[1]} degrees "
        f"of freedom, p = {stats.f.sf(ratio, *freedom):.4f}"
    ) in text()


def test_what_stands_with_all_cells_counted_in() -> None:
    p = {(method, bits, 0): found.p for method, bits, found in one_seed()}
    [alone] = [value for value in p.values() if value is not None and value < 0.05]
    adjusted = dict(zip(p, holm(list(p.values())), strict=True))["viditq", 3, 0]
    assert adjusted is not None
    assert f"p = {alone:.3f} alone, {adjusted:.2f} with all {len(p)} counted in (Holm)" in text()
    cells = scored("viditq-seeds")
    for bits, seed in ((4, 1), (3, 1), (3, 2)):
        p["viditq", bits, seed] = effect([differences(cells, "viditq", bits, seed)]).p
    found = dict(zip(p, holm(list(p.values())), strict=True))
    [(cell, stands)] = [(cell, value) for cell, value in found.items() if value is not None and value < 0.05]
    assert cell == ("viditq", 3, 1)
    assert f"Seed 1 stands with all {len(p)} cells counted in, p = {stands:.3f} (Holm)" in text()


def test_codes_of_the_first_step() -> None:
    """At W3A3, as the document says: all equal on seed 1, one other in the first layer that parts on 0, 2."""
    looked = looked_into("packed_runs-viditq-h200.json")
    firsts = []
    for seed in (0, 1, 2):
        videos = looked[f"viditq-w3a3-s{seed}"]["videos"].values()
        [codes] = [video["codes"] for video in videos if "codes" in video]
        firsts.append(codes["codes_in_it"])
    assert firsts == [1, None, 1]


def test_distances_on_the_gpu() -> None:
    cells = [
        *looked_into("packed_runs.json").values(),
        *looked_into("packed_runs-viditq-h200.json").values(),
    ]
    found = apart(*cells)
    assert (len(found), len(apart(*cells[15:])), sum(d > 0 for d in found)) == (1680, 480, 796)
    assert (sum(d < -TWICE for d in found), sum(d > TWICE for d in found)) == (4, 4)
    medians = [float(np.median(apart(cell))) for cell in cells]
    assert np.median(medians) == pytest.approx(-0.04, abs=0.005)
    assert (
        "nearer to the fake-quantized one than that in 796, and in the median cell 0.04 dB farther" in text()
    )


def test_videos_that_needed_other_roundings() -> None:
    """All that were unexplained by the first rounding are told of, and some other rounding explains each."""
    before = looked_into("packed_runs.json")
    again, viditq = (looked_into(f"packed_runs-{name}-h200.json") for name in ("other_roundings", "viditq"))
    shown = 0
    for cell, found in {**again, **viditq}.items():
        for name, video in found["videos"].items():
            assert not video["explanation"].startswith("UNEXPLAINED")
            if "other_roundings_db" not in video:
                continue
            assert video["packed_db"] - video["moved_db"] < -TWICE
            others = video["other_roundings_db"]
            assert video["packed_db"] > min(others) - TWICE
            method, width, seed = cell.rsplit("-", 2)
            first = f"`{method}` {width.upper()}, seed {seed[1:]}, video {name.removesuffix('-0')}"
            figures = [f"{db:.1f}" for db in (video["packed_db"], video["moved_db"], min(others))]
            assert row("packed.md", first) == [*figures[:2], str(len(others)), figures[2]]
            shown += 1
    assert shown == 4
    for cell, found in again.items():
        assert found["scores"] == before[cell]["scores"]
        for name, video in found["videos"].items():
            assert all(
                video[side] == before[cell]["videos"][name][side] for side in ("packed_db", "moved_db")
            )
            unexplained = before[cell]["videos"][name]["explanation"].startswith("UNEXPLAINED")
            assert unexplained == ("other_roundings_db" in video)


@pytest.mark.parametrize(
    ("name", "seed", "widths", "words"),
    [
        ("viditq-cpu", 0, (8, 4, 3), "the differences are {}, {} and {} at W8A8, W4A4 and W3A3"),
        ("viditq-cpu-seed1", 1, (4, 3), "they are {} and {} at W4A4 and W3A3"),
    ],
)
def test_viditq_on_a_cpu(name: str, seed: int, widths: tuple[int, ...], words: str) -> None:
    cells = looked_into(f"packed_runs-{name}.json")
    each = [cells[f"viditq-w{bits}a{bits}-s{seed}"] for bits in widths]
    shown = [told(cell["scores"]["mean"], *cell["scores"]["interval"]) for cell in each]
    assert words.format(*shown) in text()
    found = apart(*each)
    assert len(found) == 80 * len(widths) and min(found) > -TWICE
    if seed == 0:
        assert (
            f"Of `viditq`'s {len(found)} on the CPU the packed one is nearer in {sum(d > 0 for d in found)}"
            in text()
        )


def test_the_runs_were_made_as_the_document_says() -> None:
    for name in ("viditq", "other_roundings"):
        found = json.loads((FOLDER / f"packed_runs-{name}-h200.json").read_text())
        assert found["device"] == "NVIDIA H200" and found["commit"].startswith("a0adadd")
        assert re.match(r"2\.11", found["versions"]["torch"]) and found["versions"]["triton"].startswith(
            "3.6"
        )


def moved_runs() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((FOLDER / "moved_runs-viditq-h200.json").read_text())
    return found


def over_prompts(z: np.ndarray[Any, Any]) -> tuple[float, float, float]:
    from scipy import stats

    half = float(stats.t.ppf(0.975, z.size - 1) * z.std(ddof=1) / math.sqrt(z.size))
    return float(z.mean()), float(z.mean()) - half, float(z.mean()) + half


@pytest.mark.parametrize("words", ["packed", "batches of 16", "batches of 10", "plain torch"])
def test_runs_with_other_roundings(words: str) -> None:
    """Each run's row is what its prompts give, and the packed one's are those of the scores."""
    shown = row("packed.md", words)
    for seed in (0, 1, 2):
        cell = moved_runs()[f"viditq-w3a3-s{seed}"]
        if words not in cell["runs"]:
            assert shown[seed] == ""
            continue
        run = cell["runs"][words]
        z = np.array(run["by_prompt"])
        value, lo, hi = over_prompts(z)
        assert shown[seed] == (f"**{told(value, lo, hi)}**" if lo * hi > 0 else told(value, lo, hi))
        assert [run["difference"], *run["interval"]] == pytest.approx([value, lo, hi])
        assert run["standard_error"] == pytest.approx(z.std(ddof=1) / math.sqrt(80))
        assert run["mean"] - cell["first"] == pytest.approx(value)
        if words == "packed":
            scores = scored("viditq-seeds")
            assert cell["first"] == scores[f"viditq-w3a3-s{seed}"]["mean"]["value"]
            assert z == pytest.approx(table([differences(scores, "viditq", 3, seed)])[0][0])
        else:
            assert run["execution"] == "fake" and run["same_calibration"]


def spread(first: bool) -> tuple[float, float, float, int, int]:
    """Standard deviations of means within a seed, found and by the prompts alone; F and its freedom."""
    between = within = 0.0
    runs = errors = 0
    for cell in moved_runs().values():
        rows = [run["by_prompt"] for run in cell["runs"].values()]
        z = np.array([[0.0] * 80, *rows] if first else rows)
        between += 80 * float(z.mean(axis=1).var(ddof=1)) * (len(z) - 1)
        within += float(((z - z.mean(axis=0) - z.mean(axis=1)[:, None] + z.mean()) ** 2).sum())
        runs, errors = runs + len(z) - 1, errors + 79 * (len(z) - 1)
    deviations = [100 * math.sqrt(square / 80) for square in (between / runs, within / errors)]
    return deviations[0], deviations[1], between / runs / (within / errors), runs, errors


def test_how_far_single_runs_spread() -> None:
    from scipy import stats

    found, explained, ratio, *freedom = spread(first=True)
    p = stats.f.sf(ratio, *freedom)
    assert (
        f"Of all 12 runs the means have a standard deviation of {found:.2f} within a seed, where the prompts "
        f"explain {explained:.2f}: F = {ratio:.1f} with {freedom[0]} and {freedom[1]} degrees of freedom, "
        f"p = {p:.3f}"
    ) in text()
    two = math.sqrt(2) * found
    words = (
        f"a difference of two about {two:.1f}, so that 95 % of differences lie within some {1.96 * two:.1f}"
    )
    assert words in text()
    found, explained, ratio, *freedom = spread(first=False)
    p = stats.f.sf(ratio, *freedom)
    assert (
        f"Without the three first runs it is {found:.2f} of {explained:.2f}: F = {ratio:.1f} with "
        f"{freedom[0]} and {freedom[1]} degrees of freedom, p = {p:.1f}"
    ) in text()


def test_packed_beside_the_other_roundings() -> None:
    shown = []
    for seed in (0, 1, 2):
        runs = dict(moved_runs()[f"viditq-w3a3-s{seed}"]["runs"])
        packed = np.array(runs.pop("packed")["by_prompt"])
        shown.append(
            told(*over_prompts(packed - np.mean([run["by_prompt"] for run in runs.values()], axis=0)))
        )
    assert "fake-quantized runs is {}, {} and {} on the three seeds".format(*shown) in text()
