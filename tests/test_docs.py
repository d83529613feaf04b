"""The documents keep their promises: links lead somewhere, nothing is left to be filled in."""

from __future__ import annotations

import contextlib
import io
import re
from functools import cache
from pathlib import Path

import pytest

from evalharness.cli.main import main

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "results/**/*.md", "evalharness/tinyworld/assets/*.md")
    for path in ROOT.glob(pattern)
)
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_relative_links_lead_to_files(page: Path) -> None:
    targets = [link for link in LINK.findall(page.read_text()) if "://" not in link]
    assert [link for link in targets if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_nothing_is_left_to_be_filled_in(page: Path) -> None:
    words = r"\b(?:[A-Z]+_(?:BLOCK|TABLE|AGREEMENT)|PLACEHOLDER|TODO|FIXME|TBD)\b|^[A-Z_]{3,}$"
    assert re.findall(words, page.read_text(), re.MULTILINE) == []


def test_the_readme_names_the_two_commands() -> None:
    text = (ROOT / "README.md").read_text()
    makefile = (ROOT / "Makefile").read_text()
    for target in ("quickstart", "test"):
        assert f"make {target}" in text
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)


def commands(page: Path) -> list[str]:
    """Lines of a page with its continued lines put together."""
    return page.read_text().replace("\\\n", " ").splitlines()


@cache
def help_of(verb: str) -> str:
    """Of a verb; of none of them, of the program."""
    told = io.StringIO()
    with contextlib.redirect_stdout(told), contextlib.suppress(SystemExit):
        main([*verb.split(), "--help"])
    return told.getvalue()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_commands_have_the_verbs_and_flags_that_are_written(page: Path) -> None:
    """``evalharness VERB --flag`` and ``python FILE``; flags of benchmarks are the benchmarks' own tests."""
    unknown, verbs = [], {name for name in re.findall(r"^  ([a-z]+) ", help_of(""), re.MULTILINE)}
    for line in commands(page):
        for verb, rest in re.findall(r"(?:-m |\$ |^    |^)evalharness ([a-z]+)\b([^`#|]*)", line):
            if verb not in verbs:
                unknown.append(verb)
                continue
            flags = re.findall(r"(?<!\S)(--[a-z][\w-]*)", rest)
            shown = set(re.findall(r"--[a-z][\w-]*", help_of(verb)))
            unknown += [f"{verb} {flag}" for flag in flags if flag not in {*shown, "--help", "--debug"}]
        scripts = re.findall(r"python ((?:benchmarks|tests|docs)/[\w/]+\.py)", line)
        unknown += [script for script in scripts if not (ROOT / script).is_file()]
    assert unknown == []


@pytest.mark.parametrize("room", ["evalharness", "qvgen"])
def test_the_architecture_names_every_file_of_a_room(room: str) -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    within = (ROOT / room).iterdir()
    files = {path.name for path in within if path.suffix == ".py" and not path.name.startswith("__")}
    folders = {f"{path.parent.name}/" for path in (ROOT / room).glob("*/__init__.py")}
    assert sorted(name for name in files | folders if f"`{name}" not in page) == []
