"""A check as text, Markdown for a CI summary, JUnit XML and JSON."""

from __future__ import annotations

import dataclasses
import json
from xml.etree import ElementTree

from evalharness.compare.text import change_text
from evalharness.gates.status import CheckReport, Status, Verdict
from evalharness.hashing import jsonable
from evalharness.visible import visible

__all__ = ["junit", "markdown", "text", "to_json"]


def text(report: CheckReport) -> str:
    """The status, what did not pass, and how many did."""
    bad = [verdict for verdict in report.verdicts if verdict.status is not Status.PASS]
    lines = [f"{report.status}: {report.run} against {report.reference}"]
    lines += [f"  {change_text(change)}" for change in report.recipe]
    lines += [f"  {v.status:<16} {v.row} {v.metric}: {_values(v)}{v.reason}" for v in bad]
    lines.append(f"  {len(report.verdicts) - len(bad)} of {len(report.verdicts)} gates pass")
    lines += [f"  note: {note}" for note in report.notes]
    return "\n".join(lines) + "\n"


def markdown(report: CheckReport) -> str:
    """For a job's summary: what did not pass first, everything below."""
    bad = [verdict for verdict in report.verdicts if verdict.status is not Status.PASS]
    lines = [f"# {report.status}: {_escaped(report.run)} against {_escaped(report.reference)}", ""]
    lines += [f"{_escaped(report.label)}", ""]
    if report.recipe:
        lines += ["The recipe differs:", "", *(f"- {_escaped(change_text(c))}" for c in report.recipe), ""]
    lines += [f"{len(report.verdicts) - len(bad)} of {len(report.verdicts)} gates pass.", ""]
    lines += ["| status | row | metric | reference | run | p (Holm) | why |", "|---|---|---|---|---|---|---|"]
    ordered = sorted(report.verdicts, key=lambda verdict: verdict.status is Status.PASS)
    lines += ["| " + " | ".join(_columns(verdict)) + " |" for verdict in ordered]
    lines += ["", *(f"- {_escaped(note)}" for note in report.notes)] if report.notes else []
    return "\n".join(lines) + "\n"


def junit(report: CheckReport) -> str:
    """JUnit XML: a regression is a failure; what could not be judged is an error."""
    bad = [v.status for v in report.verdicts if v.status is not Status.PASS]
    suite = ElementTree.Element(
        "testsuite",
        name="evalharness check",
        tests=str(len(report.verdicts)),
        failures=str(bad.count(Status.REGRESSION)),
        errors=str(len(bad) - bad.count(Status.REGRESSION)),
        skipped="0",
    )
    for verdict in report.verdicts:
        case = ElementTree.SubElement(
            suite, "testcase", classname=_printable(verdict.row), name=_printable(verdict.metric)
        )
        if verdict.status is not Status.PASS:
            tag = "failure" if verdict.status is Status.REGRESSION else "error"
            message = _printable(f"{_values(verdict)}{verdict.reason}")
            ElementTree.SubElement(case, tag, type=verdict.status.value, message=message)
    root = ElementTree.Element("testsuites")
    root.append(suite)
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def to_json(report: CheckReport) -> str:
    """Everything, with the status on top."""
    record = {"status": report.status, **jsonable(dataclasses.asdict(report))}
    return json.dumps(jsonable(record), indent=1, allow_nan=False) + "\n"


def _values(verdict: Verdict) -> str:
    if verdict.run is None or verdict.reference is None:
        return ""
    return f"{verdict.reference:.4g} -> {verdict.run:.4g}, "


def _columns(verdict: Verdict) -> list[str]:
    numbers = ["-" if v is None else f"{v:.4g}" for v in (verdict.reference, verdict.run)]
    p = "-" if verdict.p is None else f"{verdict.p:.3f}"
    status = verdict.status if verdict.status is Status.PASS else f"**{verdict.status}**"
    return [status, _escaped(verdict.row), _escaped(verdict.metric), *numbers, p, _escaped(verdict.reason)]


def _escaped(words: str) -> str:
    """Nothing that Markdown or HTML would take for its own."""
    safe = visible(words).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return " ".join(safe.replace("\\", "\\\\").replace("|", "\\|").replace("`", "\\`").split())


def _printable(words: str) -> str:
    """Without the control characters that XML cannot hold; those that can be seen are."""
    return "".join(c for c in visible(words, one_line=True) if c.isprintable())
