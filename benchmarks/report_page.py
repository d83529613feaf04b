"""The report in a headless Chromium: how long it takes to open, to filter and to order, at many videos.

    python -m benchmarks.report_page --base CHECKOUT --output results/benchmarks/report_page.json

Ten rows, one video a prompt; so 1,000 and 10,000 videos. With ``--base`` the page of another checkout is
measured in turns with this one's. ``--screenshots FOLDER`` keeps a picture of a desk's and a phone's width.
"""

from __future__ import annotations

import argparse
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

ROOT = Path(__file__).resolve().parents[1]
ROWS = (
    ("bf16", 16), ("rtn", 4), ("lsq", 4), ("qvgen", 4), ("svdquant", 4), ("rtn", 3), ("lsq", 3),
    ("qvgen", 3), ("efficientdm", 3), ("qdm", 3),
)  # fmt: skip
DIMENSIONS = ("subject_consistency", "motion_smoothness", "color", "scene")
ACTIONS = {
    "order": "form.elements.order.value = 'loss';",
    "bits": "form.elements.bits.value = 'W3A3';",
    "dimension": "form.elements.dimension.value = 'color';",
    "words": "form.elements.text.value = 'number 7';",
}


def build(folder: Path, prompts: int) -> None:
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
    for number, (method, bits) in enumerate(ROWS):
        rng = np.random.default_rng(number)
        level = 0.9 - 0.002 * (16 - bits) * (number % 4)
        rows = {
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
            n_expected={name: len(found) for name, found in rows.items()}, scores=rows,
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
    """Milliseconds of the page's main thread for each step; megabytes of the page and of its objects.

    They are ticks of that thread, not of the clock: what else runs on the machine does not count.
    """
    browser.call("Page.navigate", url="about:blank")
    browser.call("Performance.disable")
    browser.call("Performance.enable", timeDomain="threadTicks")
    browser.open(page)
    browser.wait("document.querySelectorAll('#browse-list article').length === 10")
    found = {"page_mb": page.stat().st_size / 1e6, "open_ms": _busy_ms(browser)}
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
    return {**found, "heap_mb": heap / 1e6}


def _busy_ms(browser: Browser) -> float:
    """All tasks of the main thread since the page began."""
    metrics = browser.call("Performance.getMetrics")["metrics"]
    return 1000 * float(next(m["value"] for m in metrics if m["name"] == "TaskDuration"))


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
    parser.add_argument("--prompts", type=int, nargs="+", default=[100, 1000])
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--base", type=Path, default=None, help="another checkout, measured in turns")
    parser.add_argument("--output", type=Path, default=None)
    parser.add_argument("--screenshots", type=Path, default=None)
    parser.add_argument("--build", type=Path, default=None, help="only make a page there")
    options = parser.parse_args(argv)
    if options.build is not None:
        build(options.build, options.prompts[0])
        return 0
    from benchmarks.chromium import Browser, find_chromium

    program = find_chromium()
    if program is None:
        raise SystemExit("no Chromium on this machine")
    roots = {"base": options.base.resolve()} if options.base is not None else {}
    roots["new"] = ROOT
    record: dict[str, Any] = {"rows": len(ROWS), "turns": options.turns, "sizes": []}
    browser = Browser(program)
    for prompts in options.prompts:
        with tempfile.TemporaryDirectory(prefix="page-") as place:
            pages = {side: _made(root, Path(place) / side, prompts) for side, root in roots.items()}
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
            record["sizes"].append({"videos": prompts * len(ROWS), "prompts": prompts, **sides})
            print(json.dumps(record["sizes"][-1], indent=1))
            if options.screenshots is not None:
                pictures(browser, pages["new"], options.screenshots / str(prompts))
    browser.close()
    if options.output is not None:
        options.output.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return 0


def _made(root: Path, folder: Path, prompts: int) -> Path:
    """A page by the code of a checkout; this file makes it for all of them."""
    words = ["--build", str(folder), "--prompts", str(prompts)]
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
