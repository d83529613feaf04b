"""The pictures of docs/images: one script makes all, each is shown, and what it takes is what it says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from PIL import Image

from benchmarks import pictures
from benchmarks.chromium import Browser, find_chromium
from benchmarks.pictures import GAP, MARGIN, PHONE, Few, Shot, beside, taken
from evalharness.protocols.tinyworld import TinyWorldProtocol

ROOT = Path(__file__).parents[1]
IMAGES = ROOT / "docs" / "images"
CHROMIUM = find_chromium()


def shown() -> set[Path]:
    """The images that documents show."""
    found: set[Path] = set()
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        links = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", path.read_text(encoding="utf-8"))
        found |= {(path.parent / link).resolve() for link in links if "://" not in link}
    return found


def test_the_script_makes_every_picture_and_each_is_shown_by_a_document() -> None:
    there = {path.stem for path in IMAGES.iterdir()}
    assert set(pictures.names()) == there and len(pictures.names()) == len(there)
    used = shown()
    assert {path.stem for path in used if path.parent == IMAGES} == there
    assert [path for path in used if not path.is_file()] == []


def test_pictures_are_as_large_as_the_script_takes_them() -> None:
    """So that one which was changed in the script alone is noticed."""
    for name, shots in pictures.PICTURES.items():
        sizes = [(min(shot.width, shot.cut), shot.height) for shot in shots]
        if shots[0].printed:
            sizes = [((w + 2 * MARGIN) * 3 // 4, (h + 2 * MARGIN) * 3 // 4) for w, h in sizes]
        wanted = (sum(w for w, _ in sizes) + GAP * (len(sizes) - 1), max(h for _, h in sizes))
        with Image.open(IMAGES / f"{name}.png") as image:
            assert image.size == wanted, name
            assert len(image.convert("RGB").resize((64, 64)).getcolors(4096) or []) > 20, f"{name} is blank"


def test_the_pictures_prompts_are_the_suites() -> None:
    whole = {prompt.id: prompt for prompt in TinyWorldProtocol().prompts()}
    few = Few().prompts()
    assert [prompt.id for prompt in few] == sorted({*pictures.COMPARED, *pictures.PLAIN})
    assert all(prompt == whole[prompt.id] for prompt in few)


def test_an_unknown_picture_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        pictures.main(["--only", "report-plot"])
    assert "'report-plot' is none of methods, report-glance" in capsys.readouterr().err


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_a_part_of_a_page_is_taken_and_parts_stand_beside_each_other(tmp_path: Path) -> None:
    """A page of two bands: from the second, by scheme and media, in the size that was asked for."""
    page = tmp_path / "page.html"
    page.write_text(
        "<meta name=viewport content='width=device-width'><style>body{margin:0}"
        "div{height:400px;background:#ff0000} #two{background:#00ff00}"
        "@media (prefers-color-scheme: dark){#two{background:#0000ff}}"
        "@media print{#two{background:#000000}}</style><div></div><div id=two></div>"
    )
    assert CHROMIUM is not None
    browser = Browser(CHROMIUM)
    try:
        shot = Shot("any", "document.getElementById('two')", 120, PHONE, cut=200)
        light, dark = (taken(browser, shot._replace(dark=dark), page) for dark in (False, True))
        printed = taken(browser, shot._replace(printed=True), page)
    finally:
        browser.close()
    assert light.size == dark.size == (200, 120)
    assert light.getpixel((100, GAP - 1)) == (255, 0, 0), "a little of what is above"
    assert light.getpixel((100, GAP + 1)) == (0, 255, 0) and dark.getpixel((100, 60)) == (0, 0, 255)
    assert printed.size == ((200 + 2 * MARGIN) * 3 // 4, (120 + 2 * MARGIN) * 3 // 4)
    assert printed.getpixel((2, 2)) == (255, 255, 255)
    assert printed.getpixel((100, MARGIN * 3 // 4 + 6)) == (0, 0, 0), "nothing of what is above"
    both = beside([light, dark])
    assert both.size == (400 + GAP, 120) and both.getpixel((200 + GAP + 5, 60)) == (0, 0, 255)
