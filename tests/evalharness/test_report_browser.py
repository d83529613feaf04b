"""The page in a real browser: from disk, without a network, filtered, in step, on a phone, 1,000 videos."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.chromium import Browser, find_chromium
from evalharness.report.html import HtmlReporter
from evalharness.report.selection import choose_prompts, shown_cells
from evalharness.results import CellRecord, Results, ScoreRow, build_results
from evalharness.video import write_video

CHROMIUM = find_chromium()
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
DIMENSIONS = ["color", "scene"]
SCRIPT = "<script>document.title='pwned'</script><img src=x onerror=\"document.title='pwned'\">"
METHODS = (("bf16", 16), ("rtn", 4), ("lsq", 4), ("rtn", 3), ("lsq", 3))


def cell(method: str, bits: int, prompts: int) -> CellRecord:
    """Scores such that rtn at 3 bits differs most on the last prompt's color."""
    reference = method == "bf16"
    fall = 0.0 if reference else (0.02 if bits == 4 else 0.3) * (2 if method == "rtn" else 1)
    rows = {
        "color": [ScoreRow(f"{i:04d}", 0, 0.9 - fall * i / prompts) for i in range(prompts)],
        "scene": [
            ScoreRow(f"{i:04d}", 0, 0.8 - fall * (prompts - i) / prompts) for i in range(0, prompts, 2)
        ],
    }
    return CellRecord(
        cell_id="bf16-s0" if reference else f"{method}-w{bits}a{bits}-s0",
        model="toy", protocol="toy", method=method, w_bits=bits, a_bits=bits, seed=0,
        source="reference" if reference else "computed", execution="real" if reference else "fake",
        n_expected={name: len(found) for name, found in rows.items()}, scores=rows,
        n_videos_expected=prompts, n_videos_ok=prompts, n_failed=0,
        profile={"step_ms": 10.0, "weights_mb": bits / 2, "weight_bits": float(bits)},
        train_log=[] if method != "lsq" else [
            {"step": s, "loss": 1 / (s + 1), "grad_norm": 2 / (s + 1), "rank": 32 >> s} for s in range(6)
        ],
        method_config={"note": SCRIPT},
    )  # fmt: skip


def make(prompts: int) -> Results:
    texts = {f"{i:04d}": f"a prompt, number {i}" for i in range(prompts)}
    return build_results(
        [cell(method, bits, prompts) for method, bits in METHODS],
        protocol="toy", dimensions=DIMENSIONS, percent=True, label=f"toy {SCRIPT}",
        manifest={"note": SCRIPT}, prompts=texts | {"0000": SCRIPT},
    )  # fmt: skip


def page(folder: Path, prompts: int) -> Path:
    """A run folder whose videos are all the same few bytes of real video, and its page."""
    results = make(prompts)
    frames = np.zeros((8, 32, 32, 3), np.uint8)
    frames[:, :, 16:] = np.arange(8, dtype=np.uint8)[:, None, None, None] * 30
    one = folder / "one.mp4"
    write_video(one, frames, 8)
    for each in results.cells:
        videos = folder / "cells" / each.id / "videos"
        videos.mkdir(parents=True)
        for prompt in results.prompts:
            (videos / f"{prompt}-0.mp4").hardlink_to(one)
    (folder / "cells/rtn-w4a4-s0/videos/0001-0.mp4").unlink()
    [path] = HtmlReporter().write(results, folder)
    return path


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return page(tmp_path_factory.mktemp("run"), 30)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    assert CHROMIUM is not None
    found = Browser(CHROMIUM)
    yield found
    found.close()


@pytest.fixture
def opened(browser: Browser, report: Path) -> Browser:
    browser.requests.clear()
    browser.errors.clear()
    browser.open(report)
    browser.wait("document.querySelectorAll('#browse-list article').length === 10")
    return browser


def column(browser: Browser, name: str) -> list[str]:
    return browser.run(
        f"""(() => {{ const table = document.querySelector("[aria-labelledby=table-1] table.sortable");
        const heads = [...table.tHead.rows[0].cells].map((head) => head.textContent);
        const at = heads.indexOf({name!r});
        return [...table.tBodies[0].rows].map((row) => row.cells[at].firstChild.textContent.trim()); }})()"""
    )


def titles(browser: Browser) -> list[str]:
    return browser.run("[...document.querySelectorAll('#browse-list h3')].map((head) => head.textContent)")


def choose(browser: Browser, name: str, value: str) -> None:
    browser.run(
        f"""(() => {{ const form = document.getElementById("browse-form");
        form.elements[{name!r}].value = {value!r};
        form.dispatchEvent(new Event("input", {{bubbles: true}})); }})()"""
    )


def test_the_page_asks_nothing_of_the_network_and_has_no_errors(opened: Browser) -> None:
    asked = [url for url in opened.requests if not url.startswith("data:")]
    assert asked and all(url.startswith("file://") for url in asked)
    assert opened.errors == []


def test_text_from_outside_runs_nowhere(opened: Browser) -> None:
    assert opened.run("document.title") == "Leaderboard: toy"
    choose(opened, "text", "pwned")
    assert titles(opened) == [SCRIPT], "as text"
    assert opened.run("document.querySelectorAll('img').length") == 0
    assert opened.run("document.title") == "Leaderboard: toy"


def test_columns_sort_by_a_click_and_back(opened: Browser) -> None:
    click = (
        "[...document.querySelectorAll('[aria-labelledby=table-1] th button')].find((b) => b.textContent "
        "=== 'mean').click()"
    )
    opened.run(click)
    falling = [float(value) for value in column(opened, "mean")]
    assert falling == sorted(falling, reverse=True)
    opened.run(click)
    assert [float(value) for value in column(opened, "mean")] == falling[::-1]
    assert opened.run("document.querySelector('th[aria-sort]').getAttribute('aria-sort')") == "ascending"


def test_prompts_chosen_by_rule_come_first(opened: Browser, report: Path) -> None:
    assert opened.run("document.getElementById('browse-form').elements.order.value") == "rule"
    results = make(30)
    cells = shown_cells(results)
    chosen = [results.prompts[each.prompt_id] for each in choose_prompts(cells, DIMENSIONS, 10)]
    assert titles(opened) == chosen
    note = opened.run("document.getElementById('browse-note').textContent")
    assert "chosen by rule, not by eye" in note and "Their 50 videos lie inside this page" in note


def test_rows_of_the_tables_are_filtered_and_folded_ones_made_when_opened(
    browser: Browser, tmp_path: Path
) -> None:
    cells = [cell(*key, 12) for key in (*METHODS, *((m, b) for m in ("rtn", "lsq") for b in (2, 5)))]
    cells += [replace(each, seed=1, cell_id=each.cell_id.replace("-s0", "-s1")) for each in cells]
    results = build_results(cells, protocol="toy", dimensions=DIMENSIONS, percent=True, label="", manifest={})
    [path] = HtmlReporter().write(results, tmp_path)
    browser.open(path)
    rows = """[...document.querySelectorAll("[aria-labelledby=table-{0}] tbody tr")]
        .filter((row) => !row.hidden).map((row) => `${{row.dataset.method}} ${{row.dataset.bits}}`)"""
    assert len(browser.run(rows.format(1))) == 9 and browser.run(rows.format(2)) == [], "not made before"
    browser.run(
        """(() => { const form = document.getElementById("rows-form"); form.elements.bits.value = "W3A3";
        form.querySelector("input[value=rtn]").click(); })()"""
    )
    assert browser.run(rows.format(1)) == ["bf16 BF16", "lsq W3A3"], "full precision stays"
    assert "1 of 8 rows" in browser.run("document.querySelector('#rows-form [role=status]').textContent")
    browser.run("document.querySelector('details.later').open = true")
    browser.wait(f"{rows.format(2)}.length > 0")
    assert browser.run(rows.format(2)) == ["bf16 BF16"] * 2 + ["lsq W3A3"] * 2, "filtered as it is made"
    buttons = "[...document.querySelectorAll('details.later th button')]"
    browser.run(f"{buttons}.find((b) => b.textContent === 'seed').click()")
    assert browser.run("document.querySelector('details.later [aria-sort]').textContent") == "seed"


def test_methods_are_picked_by_keyboard_and_by_button(opened: Browser) -> None:
    pick = "document.querySelector('#browse-form .pick')"
    opened.run(f"{pick}.querySelector('summary').click()")
    opened.run(f"{pick}.querySelector('input[value=lsq]').click()")
    first = "document.querySelector('#browse-list article')"
    captions = f"[...{first}.querySelectorAll('figcaption b')].map((b) => b.textContent)"
    opened.run("document.getElementById('browse').scrollIntoView()")
    opened.wait(f"{captions}.length === 3")
    assert opened.run(captions) == ["bf16", "rtn", "rtn"]
    assert opened.run(f"{pick}.querySelector('summary').textContent") == "Methods: rtn"
    opened.run(f"[...{pick}.querySelectorAll('button')].find((b) => b.textContent === 'None').click()")
    opened.wait(f"{captions}.length === 1")
    opened.run(f"{pick}.querySelector('input').focus()")
    press(opened, "Escape", 27)
    assert opened.run(f"!{pick}.open && document.activeElement === {pick}.querySelector('summary')")


def test_prompts_are_filtered_by_dimension_disagreement_bits_and_words(opened: Browser) -> None:
    choose(opened, "order", "spread")
    choose(opened, "dimension", "color")
    assert titles(opened)[:2] == ["a prompt, number 29", "a prompt, number 28"], (
        "color differs most at the end"
    )
    choose(opened, "dimension", "scene")
    assert titles(opened)[:2] == [SCRIPT, "a prompt, number 2"], "scene at the start, every second prompt"
    assert "1 to 10 of 15 prompts" in opened.run("document.getElementById('browse-place').textContent")
    choose(opened, "order", "own")
    opened.run("document.getElementById('browse-on').click()")
    assert titles(opened)[0] == "a prompt, number 20"
    choose(opened, "bits", "W3A3")
    opened.run("document.getElementById('browse').scrollIntoView()")
    opened.wait("document.querySelector('#browse-list article figcaption') !== null")
    captions = opened.run(
        "[...document.querySelector('#browse-list article').querySelectorAll('figcaption "
        "b')].map((b) => b.textContent)"
    )
    assert captions == ["bf16", "lsq", "rtn"]
    choose(opened, "text", "number 12")
    assert titles(opened) == ["a prompt, number 12"]
    choose(opened, "text", "nothing like it")
    assert opened.run("document.getElementById('browse-place').textContent") == "no prompt fits"


def test_pages_are_turned_at_the_end_and_by_number(opened: Browser) -> None:
    choose(opened, "order", "own")
    opened.run("document.getElementById('browse-end-on').click()")
    assert titles(opened)[0] == "a prompt, number 10"
    go = (
        "(() => {{ const page = document.getElementById('browse-page'); page.value = {0!r}; "
        "page.dispatchEvent(new Event('change')); return page.value; }})()"
    )
    for typed, there, first in (
        ("3", "3", 20),
        ("99", "3", 20),
        ("", "1", None),
        ("2.4", "2", 10),
        ("-1", "1", None),
    ):
        assert opened.run(go.format(typed)) == there
        assert titles(opened)[0] == (SCRIPT if first is None else f"a prompt, number {first}")
    assert opened.run("document.getElementById('browse-pages').textContent") == "of 3"
    choose(opened, "text", "number 12")
    assert opened.run("document.getElementById('browse-end').offsetParent") is None, (
        "one page: nothing to turn"
    )


def test_videos_inside_the_page_play_without_its_run_folder(
    browser: Browser, report: Path, tmp_path: Path
) -> None:
    alone = tmp_path / "report.html"
    alone.write_bytes(report.read_bytes())
    browser.open(alone)
    browser.wait("document.querySelectorAll('#browse-list article').length === 10")
    assert browser.run("document.querySelectorAll('video').length") == 0, (
        "none before it comes near the screen"
    )
    first = "document.querySelector('#browse-list article')"
    browser.run(f"{first}.scrollIntoView()")
    browser.wait(f"[...{first}.querySelectorAll('video')].filter((v) => v.readyState >= 2).length === 5")
    assert browser.run(
        f"[...{first}.querySelectorAll('video')].every((v) => v.src.startsWith('data:video/mp4'))"
    )
    assert browser.run(f"[...{first}.querySelectorAll('video')].every((v) => v.paused)"), (
        "nothing moves unasked"
    )
    browser.run("scrollTo(0, 0)")
    browser.wait("document.querySelectorAll('video').length === 0")


def test_all_videos_of_a_prompt_keep_in_step(opened: Browser) -> None:
    first = "document.querySelector('#browse-list article')"
    choose(opened, "order", "own")
    opened.run(f"{first}.scrollIntoView()")
    opened.wait(f"[...{first}.querySelectorAll('video')].filter((v) => v.readyState >= 2).length === 5")
    opened.run(f"{first}.querySelector('.together button').click()")
    opened.wait(f"{first}.querySelector('video').currentTime > 0.3")
    opened.run(f"{first}.querySelectorAll('video')[3].currentTime = 0")  # one falls behind
    opened.wait(
        f"""(() => {{ const times = [...{first}.querySelectorAll("video")].map((v) => v.currentTime);
        return Math.max(...times) - Math.min(...times) < 0.15; }})()"""
    )
    slider = f"{first}.querySelector('.together input')"
    opened.run(f"{slider}.value = 0.5; {slider}.dispatchEvent(new Event('input'))")
    times = opened.run(f"[...{first}.querySelectorAll('video')].map((v) => v.currentTime)")
    assert times == pytest.approx([0.5] * 5, abs=0.01)
    assert opened.run(f"[...{first}.querySelectorAll('video')].every((v) => v.paused)")


def test_a_missing_video_is_said(opened: Browser) -> None:
    choose(opened, "text", "number 1")
    choose(opened, "order", "own")
    opened.run("document.querySelector('#browse-list article').scrollIntoView()")
    opened.wait("document.querySelector('#browse-list .absent')?.textContent === 'no video'")


def test_a_row_leads_to_its_recipe(opened: Browser) -> None:
    opened.run("document.querySelector('[aria-labelledby=table-1] tbody a').click()")
    opened.wait("document.querySelector('details[id]:target')?.open === true")
    assert opened.run("document.querySelector('details[id]:target').offsetHeight > 100"), (
        "what holds it is open too"
    )
    text = opened.run("document.querySelector('details[id]:target').textContent")
    assert "bf16-s0" in text and "100 %, 30 of 30 videos" in text


@pytest.mark.parametrize("width", [360, 768, 1280])
def test_nothing_hangs_over_the_edge(browser: Browser, report: Path, width: int) -> None:
    browser.open(report, width=width, height=800, mobile=width < 500)
    browser.wait("document.querySelectorAll('#browse-list article').length === 10")
    assert browser.run("document.documentElement.scrollWidth") <= width
    small = browser.run(
        "[...document.querySelectorAll('p, td, li, button')].filter((e) => e.offsetParent && "
        "parseFloat(getComputedStyle(e).fontSize) < 11).length"
    )
    assert small == 0


def test_accessible_names_headings_and_landmarks(opened: Browser) -> None:
    problems = opened.run(
        """(() => { const bad = [];
        for (const control of document.querySelectorAll("button, select, input, video, a")) {
          const name = control.getAttribute("aria-label") || control.textContent.trim()
            || control.closest("label")?.textContent.trim();
          if (!name) bad.push(control.outerHTML.slice(0, 80));
        }
        const identifiers = [...document.querySelectorAll("[id]")].map((e) => e.id);
        if (new Set(identifiers).size !== identifiers.length) bad.push("an id twice");
        for (const e of document.querySelectorAll("[aria-labelledby]"))
          if (!document.getElementById(e.getAttribute("aria-labelledby"))) bad.push(e.outerHTML.slice(0, 80));
        const levels = [...document.querySelectorAll("h1, h2, h3")].map((h) => Number(h.tagName[1]));
        if (levels.filter((level) => level === 1).length !== 1) bad.push("not one h1");
        for (let i = 1; i < levels.length; i += 1)
          if (levels[i] > levels[i - 1] + 1) bad.push("a level is skipped");
        for (const svg of document.querySelectorAll("svg"))
          if (!svg.closest("[role=img][aria-label]")) bad.push("svg");
        if (!document.documentElement.lang || !document.querySelector("main")) bad.push("lang or main");
        return bad; })()"""
    )
    assert problems == []


CONTRAST = """(() => {
  const parse = (text) => {
    const srgb = text.startsWith("color(srgb");
    const found = text.replace(/^.*?\\((srgb )?/, "").split(/[ ,/)]+/).filter(Boolean).map(Number);
    return [...found.slice(0, 3).map((part) => srgb ? 255 * part : part), found[3] ?? 1];
  };
  const over = (top, under) => [0, 1, 2].map((i) => top[i] * top[3] + under[i] * (1 - top[3])).concat(1);
  const background = (e) => {
    const all = [];
    for (; e; e = e.parentElement) all.push(parse(getComputedStyle(e).backgroundColor));
    return all.reverse().reduce((under, top) => over(top, under), [255, 255, 255, 1]);
  };
  const part = (v) => v / 255 <= 0.04045 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => 0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b);
  const ratios = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const e = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !e.checkVisibility()) continue;
    if (e.closest("script, style, svg, option, :disabled")) continue;
    const under = background(e);
    const [a, b] = [light(under), light(over(parse(getComputedStyle(e).color), under))];
    ratios.push((Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05));
  }
  return ratios; })()"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_stands_out_from_what_is_under_it(opened: Browser, scheme: str) -> None:
    """WCAG's ratio, worked out for each text; the formula first against black and grey on white."""
    opened.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    opened.run("for (const each of document.querySelectorAll('details')) each.open = true")
    opened.run("document.getElementById('browse-list').scrollIntoView()")
    opened.wait(
        "document.querySelectorAll('#browse-list article table').length > 0 || "
        "(document.querySelector('#browse-list article details') ?? {}).open === false"
    )
    opened.run("for (const each of document.querySelectorAll('details')) each.open = true")
    opened.wait("document.querySelectorAll('#browse-list .heat').length > 0")
    ratios = opened.run(CONTRAST)
    known = "document.body.innerHTML = '<p style=\"background:#fff;color:{0}\">text</p>'"
    opened.run(known.format("#000"))
    assert opened.run(CONTRAST) == pytest.approx([21.0])
    opened.run(known.format("#767676"))
    assert opened.run(CONTRAST) == pytest.approx([4.54], abs=0.005)
    opened.call("Emulation.setEmulatedMedia", features=[])
    assert len(ratios) > 300 and min(ratios) >= 4.5


def press(browser: Browser, key: str, code: int) -> None:
    for kind in ("keyDown", "keyUp"):
        browser.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code)


def test_a_method_of_the_plots_is_highlighted_by_list_keys_and_click(opened: Browser) -> None:
    faint = "[...new Set([...document.querySelectorAll('.series.off')].map((e) => e.dataset.series))].join()"
    select = "document.querySelector('#plots-form select')"
    assert opened.run(f"[...{select}.options].map((o) => o.value).join()") == ",lsq,rtn"
    opened.run(f"{select}.focus()")
    press(opened, "ArrowDown", 40)
    opened.wait(f"{select}.value === 'lsq'")
    assert opened.run(faint) == "rtn", "full precision stays"
    opened.run("document.querySelector('#plots-form + .plots [data-series=rtn]').dispatchEvent("
               "new MouseEvent('click', {bubbles: true}))")  # fmt: skip
    assert opened.run(f"{select}.value") == "rtn" and opened.run(faint) == "lsq"
    opened.run("document.querySelector('.plots [data-series=rtn]').dispatchEvent("
               "new MouseEvent('click', {bubbles: true}))")  # fmt: skip
    assert opened.run(f"{select}.value") == "" and opened.run(faint) == ""


def test_intervals_are_seen_in_forced_colours(opened: Browser) -> None:
    bar = "document.querySelector('.interval')"
    opened.call("Emulation.setEmulatedMedia", features=[{"name": "forced-colors", "value": "active"}])
    ink, paper = opened.run(
        f"[getComputedStyle({bar}, '::after'), getComputedStyle(document.body)].map((s) => s.backgroundColor)"
    )
    opened.call("Emulation.setEmulatedMedia", features=[])
    assert ink != paper


def test_what_was_chosen_says_for_which_dimension(opened: Browser) -> None:
    results = make(30)
    [first, *_] = choose_prompts(shown_cells(results), DIMENSIONS, 10)
    opened.run("document.querySelector('#browse-list article').scrollIntoView()")
    small = "document.querySelector('#browse-list article > small')"
    opened.wait(f"{small} !== null")
    assert opened.run(f"{small}.textContent").endswith(f"chosen by rule for {first.dimension}")


def test_the_top_of_the_page_says_what_it_shows(opened: Browser) -> None:
    text = opened.run("document.querySelector('header .summary').textContent")
    assert text.startswith("2 methods at 2 bit widths: the best keeps") and "W3A3" in text


def test_it_prints(opened: Browser) -> None:
    opened.call("Emulation.setEmulatedMedia", media="print")
    hidden = opened.run("getComputedStyle(document.getElementById('browser')).display")
    drawn = "[...document.querySelectorAll('h2')].filter((h) => h.checkVisibility()).map((h) => h.id)"
    folded = opened.run(drawn)
    opened.run("document.querySelector('#recipe ~ details').open = true")
    unfolded = opened.run(drawn)
    opened.call("Emulation.setEmulatedMedia", media="")
    assert hidden == "none"
    assert folded == ["ranking", "table-1", "plots", "reading"], "what is folded leaves no empty frame"
    assert unfolded == [*folded, "recipe"]
    assert opened.pdf().startswith(b"%PDF")


def test_a_thousand_videos_stay_usable(
    browser: Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """200 prompts of five rows: only those near the screen are opened."""
    path = page(tmp_path, 200)
    assert path.stat().st_size < 3_000_000
    browser.requests.clear()
    browser.open(path)
    browser.wait("document.querySelectorAll('#browse-list article').length === 10")
    assert browser.run("performance.timing.domComplete - performance.timing.navigationStart") < 5000
    browser.run("document.getElementById('browse-list').scrollIntoView()")
    browser.wait("[...document.querySelectorAll('#browse-list video')].some((v) => v.readyState >= 2)")
    for _ in range(19):
        browser.run("document.getElementById('browse-on').click()")
    assert browser.run("document.getElementById('browse-on').disabled")
    browser.run("document.getElementById('browse-list').lastChild.scrollIntoView()")
    browser.wait("document.querySelectorAll('#browse-list video').length > 0")
    assert browser.run("document.querySelectorAll('#browse-list video').length") <= 40, (
        "of fifty on this page"
    )
    begin = browser.run("performance.now()")
    choose(browser, "order", "loss")
    choose(browser, "order", "spread")
    assert browser.run("performance.now()") - begin < 1000


def test_records_of_a_cell_without_a_folder_have_no_videos(browser: Browser, tmp_path: Path) -> None:
    results = make(12)
    [path] = HtmlReporter().write(results, tmp_path)
    browser.open(path)
    browser.wait("document.querySelectorAll('#browse-list article').length === 10")
    assert browser.run("document.querySelectorAll('#browse-list video').length") == 0
    assert "lies in no run folder" in browser.run("document.getElementById('browse-note').textContent")
    half = replace(cell("rtn", 3, 12), scores={})
    empty = build_results([half], protocol="toy", dimensions=DIMENSIONS, percent=True, label="", manifest={})
    [path] = HtmlReporter().write(empty, tmp_path)
    browser.open(path)
    assert browser.run("document.getElementById('browse-place').textContent") == "no prompt fits"
