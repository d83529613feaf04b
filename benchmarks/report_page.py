"""The report in a headless Chromium: what it takes to open, to filter and to order, at many rows and videos.

    python -m benchmarks.report_page --base CHECKOUT --output results/benchmarks/report_page.json

Ten rows of 100 and 1,000 prompts, 67 of 80 and 200 of 100, one video a prompt. With ``--base`` the page
of another checkout is measured in turns with this one's. ``--screenshots FOLDER`` keeps a picture of a
desk's and a phone's width.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # a page is made without it, also by the code of a checkout that lacks it
    from benchmarks.chromium import Browser
from benchmarks.processes import below, words

ROOT = Path(__file__).resolve().parents[1]
SIZES = ((10, 100), (10, 1000), (67, 80), (200, 100))
"""Rows and prompts."""

WIDTHS = (4, 3, 8, 2)
DIMENSIONS = ("subject_consistency", "motion_smoothness", "color", "scene")
ACTIONS = {
    "order": "form.elements.order.value = 'loss';",
    "bits": "form.elements.bits.value = 'W3A3';",
    "dimension": "form.elements.dimension.value = 'color';",
    "words": "form.elements.text.value = 'number 7';",
}


def rows_of(count: int) -> list[tuple[str, int]]:
    """Method and bits: full precision, and methods at two widths, from 20 rows on at four."""
    widths = WIDTHS[: 2 if count < 20 else 4]
    rest = ((f"method-{place // len(widths):02d}", widths[place % len(widths)]) for place in range(count - 1))
    return [("bf16", 16), *rest]


def build(folder: Path, rows: int, prompts: int) -> None:
    """A run folder with made-up scores and one video under many names, and its page."""
    import numpy as np

    from evalharness.report.html import HtmlReporter
    from evalharness.results import CellRecord, ScoreRow, build_results
    from evalharness.video import write_video

    texts = {
        f"{i:05d}": f"a {('red', 'blue', 'green')[i % 3]} square moves slowly to the left, number {i}"
        for i in range(prompts)
    }
    records = []
    for number, (method, bits) in enumerate(rows_of(rows)):
        rng = np.random.default_rng(number)
        level = 0.9 - 0.002 * (16 - bits) * (number % 4)
        scores = {
            name: [
                ScoreRow(prompt, 0, float(np.clip(level + 0.05 * rng.standard_normal(), 0, 1)))
                for i, prompt in enumerate(texts)
                if place < 2 or i % 2 == place - 2
            ]
            for place, name in enumerate(DIMENSIONS)
        }
        reference = method == "bf16"
        records.append(CellRecord(
            cell_id=f"{method}-s0" if reference else f"{method}-w{bits}a{bits}-s0",
            model="toy", protocol="toy", method=method, w_bits=bits, a_bits=bits, seed=0,
            source="reference" if reference else "computed", execution="real" if reference else "fake",
            n_expected={name: len(found) for name, found in scores.items()}, scores=scores,
            n_videos_expected=prompts, n_videos_ok=prompts, n_failed=0,
            profile={"step_ms": 10.0, "weights_mb": bits / 2, "weight_bits": float(bits)},
        ))  # fmt: skip
    results = build_results(
        records, protocol="toy", dimensions=DIMENSIONS, percent=True, label="made-up scores", manifest={},
        prompts=texts,
    )  # fmt: skip
    frames = np.zeros((8, 32, 32, 3), np.uint8)
    frames[:, :, 16:] = np.arange(8, dtype=np.uint8)[:, None, None, None] * 30
    folder.mkdir(parents=True, exist_ok=True)
    write_video(folder / "one.mp4", frames, 8)
    for cell in results.cells:
        videos = folder / "cells" / cell.id / "videos"
        videos.mkdir(parents=True)
        for prompt in texts:
            (videos / f"{prompt}-0.mp4").hardlink_to(folder / "one.mp4")
    HtmlReporter().write(results, folder)


def look(browser: Browser, page: Path) -> dict[str, float]:
    """Milliseconds of the page's main thread for each step; megabytes, elements, nodes and videos.

    They are ticks of that thread, not of the clock: what else runs on the machine does not count.
    ``complete_ms`` alone is of the clock. Videos are the most that the page has while its first ten prompts
    are scrolled through.
    """
    browser.call("Page.navigate", url="about:blank")
    browser.call("Performance.disable")
    browser.call("Performance.enable", timeDomain="threadTicks")
    browser.open(page)
    browser.wait("document.querySelectorAll('#browse-list article').length === 10")
    clock = "performance.getEntriesByType('navigation')[0].domComplete"
    found = {
        "page_mb": page.stat().st_size / 1e6,
        "open_ms": _busy_ms(browser),
        "complete_ms": browser.run(clock),
        "elements": browser.run("document.getElementsByTagName('*').length"),
    }
    browser.call("HeapProfiler.collectGarbage")  # the page before is no part of it
    found["nodes"] = _metric(browser, "Nodes")
    found |= _scrolled(browser)
    for name, change in ACTIONS.items():
        before = _busy_ms(browser)
        browser.run(
            f"""(() => {{ const form = document.getElementById("browse-form"); {change}
            form.dispatchEvent(new Event("input", {{bubbles: true}}));
            return new Promise((done) => requestAnimationFrame(() => setTimeout(() => done(1)))); }})()"""
        )
        found[f"{name}_ms"] = _busy_ms(browser) - before
    browser.call("HeapProfiler.collectGarbage")
    heap = browser.call("Runtime.getHeapUsage")["usedSize"]
    return {**found, "heap_mb": heap / 1e6, "process_mb": _renderer_mb(browser)}


def _scrolled(browser: Browser) -> dict[str, float]:
    """From prompt to prompt, a moment at each."""
    before, most = _busy_ms(browser), 0
    for place in range(10):
        there = "document.querySelectorAll('#browse-list article')"
        browser.run(
            f"""(() => {{ {there}[Math.min({place}, {there}.length - 1)].scrollIntoView();
            return new Promise((done) => setTimeout(() => done(1), 150)); }})()"""
        )
        most = max(most, browser.run("document.querySelectorAll('video').length"))
    return {"scroll_ms": _busy_ms(browser) - before, "videos_at_once": most}


def _busy_ms(browser: Browser) -> float:
    """All tasks of the main thread since the page began."""
    return 1000 * _metric(browser, "TaskDuration")


def _metric(browser: Browser, name: str) -> float:
    metrics = browser.call("Performance.getMetrics")["metrics"]
    return float(next(m["value"] for m in metrics if m["name"] == name))


def _renderer_mb(browser: Browser) -> float:
    """Memory of the largest of the browser's processes that draw pages."""
    sizes = [0.0]
    for pid in below(browser.pid):
        with contextlib.suppress(OSError):
            if "--type=renderer" in words(pid):
                status = Path(f"/proc/{pid}/status").read_text()
                # One that ends meanwhile has no such line.
                sizes += [int(x.split()[1]) / 1000 for x in status.splitlines() if x.startswith("VmRSS")]
    return max(sizes)


def pictures(browser: Browser, page: Path, folder: Path) -> None:
    """The top of the page and the browser of prompts, on a desk and on a phone."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, width, height in (("desk", 1280, 900), ("phone", 390, 844)):
        browser.open(page, width=width, height=height, mobile=name == "phone")
        browser.wait("document.querySelectorAll('#browse-list article').length === 10")
        browser.screenshot(folder / f"{name}-top.png")
        browser.run("document.getElementById('browse').scrollIntoView()")
        browser.wait("[...document.querySelectorAll('#browse-list video')].some((v) => v.readyState >= 2)")
        browser.screenshot(folder / f"{name}-prompts.png")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--sizes", nargs="+", default=[f"{r}x{p}" for r, p in SIZES], help="rows x prompts")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--base", type=Path, default=None, help="another checkout, measured in turns")
    parser.add_argument("--output", type=Path, default=None)
    parser.add_argument("--screenshots", type=Path, default=None)
    parser.add_argument("--build", type=Path, default=None, help="only make a page there")
    options = parser.parse_args(argv)
    sizes = [tuple(map(int, size.split("x"))) for size in options.sizes]
    if options.build is not None:
        build(options.build, *sizes[0])
        return 0
    from benchmarks.chromium import Browser, find_chromium

    program = find_chromium()
    if program is None:
        raise SystemExit("no Chromium on this machine")
    roots = {"base": options.base.resolve()} if options.base is not None else {}
    roots["new"] = ROOT
    record: dict[str, Any] = {"turns": options.turns, "sizes": []}
    browser = Browser(program, patience=150)  # a page of 4,000 video elements needs it
    for rows, prompts in sizes:
        with tempfile.TemporaryDirectory(prefix="page-") as place:
            pages = {side: _made(root, Path(place) / side, rows, prompts) for side, root in roots.items()}
            turns = [
                {side: look(browser, page) for side, page in pages.items()} for _ in range(options.turns)
            ]
            sides = {
                side: {
                    key: round(statistics.median(turn[side][key] for turn in turns), 1)
                    for key in turns[0][side]
                }
                for side in roots
            }
            size = {"rows": rows, "videos": prompts * rows, "prompts": prompts}
            record["sizes"].append({**size, **sides})
            print(json.dumps(record["sizes"][-1], indent=1))
            if options.output is not None:
                options.output.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
            if options.screenshots is not None:
                pictures(browser, pages["new"], options.screenshots / f"{rows}x{prompts}")
    browser.close()
    return 0


def _made(root: Path, folder: Path, rows: int, prompts: int) -> Path:
    """A page by the code of a checkout; this file makes it for all of them."""
    words = ["--build", str(folder), "--sizes", f"{rows}x{prompts}"]
    code = (
        "import importlib.util, sys; sys.path[:0] = sys.argv[1:3]; "
        "s = importlib.util.spec_from_file_location('page', sys.argv[3]); "
        "m = importlib.util.module_from_spec(s); s.loader.exec_module(m); sys.exit(m.main(sys.argv[4:]))"
    )
    subprocess.run(
        [sys.executable, "-P", "-c", code, str(root), str(ROOT), __file__, *words],
        env={**os.environ, "PYTHONPATH": str(root)}, check=True, cwd=tempfile.gettempdir(),
    )  # fmt: skip
    return folder / "report.html"


if __name__ == "__main__":
    sys.exit(main())
