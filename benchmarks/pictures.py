"""Every picture of docs/images, from what the repository ships: some three minutes and a Chromium.

    python -m benchmarks.pictures
    python -m benchmarks.pictures --only report-plots,report-print --output build/images

Three pages are made in a temporary folder (``--work FOLDER`` keeps the run) and looked at: the shipped table
of 201 cells (``results/tinyworld``); a run of the bundled model, ten prompts by full precision and three
methods, whose videos are the contact sheets' too; and the table with the shipped logs of nine trainings at
their rows. What is printed is the page as print styles it, at the width of paper.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from evalharness.protocols.tinyworld import TinyWorldProtocol

if TYPE_CHECKING:
    from PIL.Image import Image

    from benchmarks.chromium import Browser
    from evalharness.api import Prompt

ROOT = Path(__file__).resolve().parents[1]
IMAGES = ROOT / "docs" / "images"
TABLE = ROOT / "results" / "tinyworld"

CELLS = ("bf16-s0", "qvgen-w3a3-s0", "lsq-w3a3-s0", "rtn-w3a3-s0")
COMPARED = ("0003", "0020", "0045", "0060")
"""Prompts of the sheet of all methods."""

PLAIN = ("0000", "0010", "0020", "0030", "0040", "0050", "0060", "0070")
"""Prompts of the sheet at full precision."""

DESK, PHONE, PAPER = 1240, 390, 1032
"""Pixels wide; paper is A4 across without the margins."""

GAP, MARGIN = 16, 45
LAST_PLOT = "document.querySelector('.plots').lastElementChild"


class Few(TinyWorldProtocol):
    """tinyworld's suite, the pictures' prompts of it; videos have the same seeds there and here."""

    name = "tinyworld-pictures"
    summary = "ten prompts of tinyworld, for pictures"

    def prompts(self) -> Sequence[Prompt]:
        wanted = {*COMPARED, *PLAIN}
        return [prompt for prompt in super().prompts() if prompt.id in wanted]


PLUGINS = {"protocols": {Few.name: Few}}


class Shot(NamedTuple):
    """A part of a page: from the top of ``start``, an expression of an element, that many pixels high.

    Attributes:
        width: of the window; ``cut`` of the picture where it is less.
        ready: what is true when it can be taken.
    """

    page: str
    start: str
    height: int
    width: int = DESK
    cut: int = DESK
    dark: bool = False
    printed: bool = False
    ready: str = "true"


def _by_id(name: str) -> str:
    return f"document.getElementById('{name}')"


VIDEOS = "[...document.querySelector('#browse-list article').querySelectorAll('video')]"
ALL_READY = f"{VIDEOS}.length === 4 && {VIDEOS}.every((v) => v.readyState >= 2 && !v.seeking)"
MADE = "document.querySelector('#browse-list article figcaption, #browse-list article table') !== null"
FIRST = "document.querySelector('#browse-list article h3')"

PICTURES: dict[str, tuple[Shot, ...]] = {
    "report-glance": (Shot("table", "document.body", 1118),),
    "report-leaderboard": (Shot("table", _by_id("table-1"), 760),),
    "report-plots": (Shot("table", _by_id("plots"), 1490),),
    "report-scores-dark": (Shot("table", _by_id("browse"), 820, dark=True, ready=MADE),),
    "report-prompts": (Shot("run", _by_id("browse"), 830, ready=ALL_READY),),
    "report-training": (Shot("training", LAST_PLOT, 840, cut=1060),),
    "report-phone": (
        Shot("table", "document.body", 800, PHONE),
        Shot("table", _by_id("ranking"), 800, PHONE),
        Shot("table", _by_id("plots"), 800, PHONE),
        Shot("run", FIRST, 800, PHONE, ready=ALL_READY),
    ),
    "report-print": (
        Shot("table", "document.body", 703, PAPER, printed=True),
        Shot("table", _by_id("plots"), 703, PAPER, printed=True),
    ),
}
"""Of the pages; several parts stand side by side."""

SHEETS = {"methods": (CELLS, COMPARED), "tinyworld": (CELLS[:1], PLAIN)}
"""Cells and prompts of contact sheets."""


def names() -> list[str]:
    """Of all pictures, without their ending."""
    return sorted([*PICTURES, *SHEETS])


def table_page(folder: Path) -> None:
    """The shipped table's page; the folder holds nothing else of it."""
    from evalharness.report.html import HtmlReporter
    from evalharness.results import read_results

    HtmlReporter().write(read_results(TABLE / "results.json"), folder)


def training_page(folder: Path) -> None:
    """The shipped table with the shipped logs at the rows that are of these trainings."""
    from evalharness.report.html import HtmlReporter
    from evalharness.results import read_results

    logs = {
        path.name.removesuffix(".train.jsonl") + "-s0": [
            json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()
        ]
        for path in sorted((TABLE / "training").glob("*.train.jsonl"))
    }
    results = read_results(TABLE / "results.json")
    cells = [cell.model_copy(update={"train_log": logs.get(cell.id, [])}) for cell in results.cells]
    HtmlReporter().write(results.model_copy(update={"cells": cells}), folder)


def run_page(folder: Path) -> None:
    """A run of the bundled model: full precision and three methods at W3A3."""
    from evalharness.cli.main import main as evalharness

    methods = ",".join(dict.fromkeys(cell.partition("-")[0] for cell in CELLS[1:]))
    words = ["--methods", methods, "--bits", "3", "--protocol", Few.name, "--plugin", __file__]
    if code := evalharness(["run", *words, "--output", str(folder)]):
        raise SystemExit(f"the run ended with {code}")


PAGES: dict[str, Callable[[Path], None]] = {"table": table_page, "training": training_page, "run": run_page}


def taken(browser: Browser, shot: Shot, page: Path) -> Image:
    """One part of a page."""
    from PIL import Image

    features = [{"name": "prefers-color-scheme", "value": "dark" if shot.dark else "light"}]
    media = "print" if shot.printed else ""
    browser.call("Emulation.setEmulatedMedia", media=media, features=features)
    browser.call("Emulation.setScrollbarsHidden", hidden=True)
    browser.open(page, width=shot.width, height=shot.height, mobile=shot.width == PHONE)
    above = 0 if shot.printed else GAP
    show = f"scrollBy(0, {shot.start}.getBoundingClientRect().top - {above})"
    browser.run(show)
    browser.wait(shot.ready)
    if shot.ready == ALL_READY:  # all videos of the first prompt, as wide as fit, a third through
        for control, value in (("#browse-form [name=size]", 280), (".together input", 0.33)):
            browser.run(
                f"""(() => {{ const control = document.querySelector("{control}"); control.value = {value};
                control.dispatchEvent(new Event("input", {{bubbles: true}})); }})()"""
            )
        browser.wait(ALL_READY)
    browser.run(show)  # what came meanwhile may have moved it
    browser.run("new Promise((done) => setTimeout(() => requestAnimationFrame(() => done(1)), 300))")
    reply = browser.call("Page.captureScreenshot", format="png")
    image = Image.open(io.BytesIO(base64.b64decode(reply["data"]))).convert("RGB")
    image = image.crop((0, 0, min(shot.width, shot.cut), shot.height))
    return on_paper(image) if shot.printed else image


def on_paper(image: Image) -> Image:
    """With the margins of a sheet, at three quarters of its size."""
    from PIL import Image

    sheet = Image.new("RGB", (image.width + 2 * MARGIN, image.height + 2 * MARGIN), "white")
    sheet.paste(image, (MARGIN, MARGIN))
    return sheet.resize((sheet.width * 3 // 4, sheet.height * 3 // 4), Image.Resampling.LANCZOS)


def beside(parts: Sequence[Image]) -> Image:
    """Images side by side on grey."""
    from PIL import Image

    if len(parts) == 1:
        return parts[0]
    width = sum(part.width for part in parts) + GAP * (len(parts) - 1)
    whole = Image.new("RGB", (width, max(part.height for part in parts)), "#939ca5")
    left = 0
    for part in parts:
        whole.paste(part, (left, 0))
        left += part.width + GAP
    return whole


def sheet(run: Path, name: str, path: Path) -> None:
    """A contact sheet, by the command that documents name."""
    cells, prompts = SHEETS[name]
    from evalharness.tinyworld import gallery

    words = [str(run), "--out", str(path), "--cells", ",".join(cells), "--prompts", ",".join(prompts)]
    gallery.main(words)


def make(wanted: Sequence[str], output: Path, work: Path, browser: Browser) -> None:
    """Write the pictures; a page is made in ``work`` when the first of them needs it, a run there goes on."""
    output.mkdir(parents=True, exist_ok=True)
    made: set[str] = set()

    def folder(page: str) -> Path:
        if page not in made:
            (work / page).mkdir(parents=True, exist_ok=True)
            PAGES[page](work / page)
            made.add(page)
        return work / page

    for name in wanted:
        path = output / f"{name}.png"
        if name in SHEETS:
            sheet(folder("run"), name, path)
        else:
            parts = [taken(browser, s, folder(s.page) / "report.html") for s in PICTURES[name]]
            beside(parts).save(path, optimize=True)
        print(f"{path}: {path.stat().st_size // 1000} kB", flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--only", default="", help=f"some of {', '.join(names())}")
    parser.add_argument("--output", type=Path, default=IMAGES)
    parser.add_argument("--work", type=Path, default=None, help="keep the run there for the next time")
    options = parser.parse_args(argv)
    wanted = options.only.split(",") if options.only else names()
    if unknown := [name for name in wanted if name not in names()]:
        parser.error(f"--only: {unknown[0]!r} is none of {', '.join(names())}")
    from benchmarks.chromium import Browser, find_chromium

    program = find_chromium()
    if program is None:
        raise SystemExit("no Chromium on this machine")
    browser = Browser(program)
    try:
        with tempfile.TemporaryDirectory(prefix="pictures-") as place:
            make(wanted, options.output, options.work or Path(place), browser)
    finally:
        browser.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
