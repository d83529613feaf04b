"""No hidden character of somebody else's text reaches a terminal, a table or a page; each is seen instead."""

from __future__ import annotations

import io
import json
import re
import sys
import unicodedata
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

from evalharness.cli.main import main
from evalharness.console import Console
from evalharness.report.browser import inert_json
from evalharness.report.html import render
from evalharness.report.latex import latex
from evalharness.report.tables import MarkdownReporter
from evalharness.results import write_results
from evalharness.visible import VisibleStream, visible
from tests.evalharness.test_report import build, record

JOINERS = "\u200c\u200d"  # scripts and emoji are written with them
HIDDEN = ("Cc", "Cf", "Cs", "Zl", "Zp")
HOSTILE = st.text(
    st.sampled_from("\x00\x07\x08\x1b\x7f\x9b\r\xad\u200b\u200e\u202e\u2066\ufeff\u2028a<&|`"), max_size=12
)


def hidden(text: str) -> set[str]:
    return {c for c in text if unicodedata.category(c) in HIDDEN and c not in "\t\n" + JOINERS}


def test_the_table_is_unicodes_own() -> None:
    wrong = []
    for code in range(sys.maxunicode + 1):
        character = chr(code)
        category = unicodedata.category(character)
        is_hidden = category in HIDDEN and character not in "\t\n" + JOINERS
        if category != "Cn" and is_hidden != (visible(character) != character):
            wrong.append(f"{code:04x}")
    assert wrong == []


@given(st.text())
def test_what_is_shown_is_visible_and_what_was_visible_stays(text: str) -> None:
    shown = visible(text)
    assert not hidden(shown) and visible(shown) == shown
    assert "\n" not in visible(text, one_line=True)
    if not hidden(text):
        assert shown == text
    spelled = re.sub(
        r"(?:\\u[0-9a-f]{4})+",
        lambda found: json.loads(f'"{found[0]}"'),
        visible(text.replace("\\", "/")),
    )
    assert spelled == text.replace("\\", "/"), "an escape names its character"


@given(st.dictionaries(st.text(), st.text()))
def test_json_means_the_same_afterwards(value: dict[str, str]) -> None:
    assert json.loads(visible(json.dumps(value, ensure_ascii=False))) == value


@settings(
    max_examples=5,
    phases=[Phase.explicit, Phase.generate],
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(name=HOSTILE, prompt=HOSTILE)
@example(name="\u202e\x1b[2J", prompt="</script>\u202ered\x9b")
def test_every_medium(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, prompt: str) -> None:
    """A method, a label and a prompt with anything in them: tables, page, terminal, check's three forms."""
    lsq = replace(record("lsq", 3), method="lsq" + name)
    cells = [record("bf16", 16), lsq]
    results = build(cells, label="scores" + name, prompts={"0000": "a" + prompt, "0001": prompt})
    [path] = MarkdownReporter().write(results, tmp_path)
    page = render(results, tmp_path)
    written = [path.read_bytes().decode(), latex(results), page]
    data = re.search(r'<script type="application/json"[^>]*>(.*?)</script>', page, re.DOTALL)
    assert data is not None
    written += [text for pair in json.loads(data[1])["prompts"] for text in pair]
    write_results(results, tmp_path / "results.json")
    run = str(tmp_path / "results.json")
    for form in ("text", "json", "html"):
        capsys.readouterr()
        assert main(["compare", run, run, "--format", form]) == 0
        written += capsys.readouterr()
    junit, summary = tmp_path / "junit.xml", tmp_path / "summary.md"
    main(["check", run, "--against", run, "--junit", str(junit), "--markdown", str(summary)])
    written += [*capsys.readouterr(), summary.read_text()]
    ElementTree.parse(junit)
    written.append(junit.read_text())
    for text in written:
        assert not hidden(text)
    assert inert_json(visible(prompt)).count("\\\\u") >= len(hidden(prompt)), (
        "shown, not meant, by the page's script"
    )


def test_no_markup_in_markdown(tmp_path: Path) -> None:
    evil = "<script>x</script><!--<img src=x>"
    cells = [record("bf16", 16), replace(record("lsq", 3), method="lsq" + evil)]
    results = build(cells, label=evil, prompts={"0000": evil, "0001": "two"})
    [path] = MarkdownReporter().write(results, tmp_path)
    text = path.read_text()
    assert not re.search("<[A-Za-z/!?]", text)
    assert "&lt;script>x&lt;/script>&lt;!--&lt;img src=x>" in text and "p < 0.05" in text


def test_errors_and_messages(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "a\x1b[2J\u202eb", "--against", "x"]) == 2
    Console().warn("cell \x9b31m\u2066")
    shown = capsys.readouterr().err
    assert "\\u001b[2J\\u202eb" in shown and "cell \\u009b31m\\u2066" in shown
    assert not hidden(shown)


def test_a_stream_is_the_stream_it_was() -> None:
    inner = io.StringIO()
    stream = VisibleStream(inner)
    assert stream.write("a\x1b") == 2
    stream.writelines(["b\n", "c\u202e"])
    assert stream.getvalue() == "a\\u001bb\nc\\u202e" and not stream.isatty()
