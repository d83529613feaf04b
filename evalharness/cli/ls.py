"""``evalharness ls``: what is installed."""

from __future__ import annotations

import json
from typing import Any

from evalharness.cli.parsing import Parser
from evalharness.errors import unknown
from evalharness.registry import KINDS, Registry

__all__ = ["execute"]

_DETAILS = ("exact", "adapted")


def execute(arguments: list[str]) -> int:
    """Print a table, or JSON with ``--json``."""
    parser = Parser("ls", "List what is installed. Plugins that fail to load are warned about.")
    parser.add_argument(
        "kind", nargs="?", default="all", help=f"{', '.join(KINDS)}, all (default), or papers"
    )
    parser.add_argument("--json", action="store_true", help="machine-readable")
    parser.add_plugins("also list this file's")
    options = parser.parse_args(arguments)
    if options.kind not in (*KINDS, "all", "papers"):
        raise unknown("kind", options.kind, (*KINDS, "all", "papers"))
    if options.kind == "papers":
        return _papers(as_json=options.json)
    registry = Registry(options.plugin)
    kinds = KINDS if options.kind == "all" else (options.kind,)
    listed = {kind: _entries(registry, kind) for kind in kinds}
    if options.json:
        print(json.dumps(listed if options.kind == "all" else listed[options.kind], indent=2))
        return 0
    for kind, entries in listed.items():
        if len(kinds) > 1:
            print(f"{kind}:")
        print(_table(entries))
        if kind == "methods" and len(kinds) == 1:
            print(_details(entries), end="")
    return 0


def _papers(*, as_json: bool) -> int:
    """Numbers that papers report; nothing here was measured by the harness."""
    from dataclasses import asdict

    from evalharness.papers import read_papers, table_of

    numbers = read_papers()
    if as_json:
        print(json.dumps([asdict(number) for number in numbers], indent=2))
        return 0
    print(_table(table_of(numbers)))
    second = sum(number.is_second_hand for number in numbers)
    print(
        f"\n{len(numbers)} numbers, {second} of them quoted second-hand; reported by papers, not measured "
        "here. All columns: --json"
    )
    return 0


def _entries(registry: Registry, kind: str) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            **_facts(kind, cls),
            "summary": _text(cls, "summary"),
            "source": registry.plugin(kind, name).source,
        }
        for name, cls in registry.load_all(kind).items()
    ]


def _facts(kind: str, cls: type[Any]) -> dict[str, Any]:
    if kind == "methods":
        facts = {name: _text(cls, name) for name in ("needs", "bits", "paper", *_DETAILS)}
        return {name: text for name, text in facts.items() if text or name in ("needs", "paper")}
    if kind == "metrics":
        metric = cls()
        info = metric.info
        return {
            "dimension": _text(cls, "dimension"),
            "range": f"{info.low:g}..{info.high:g}",
            "better": "higher" if info.higher_is_better else "lower",
            "faithful_to": info.faithful_to,
            "missing": ", ".join(getattr(metric, "missing", ())),
        }
    return {}


def _text(cls: type[Any], name: str) -> str:
    """A class attribute as text; empty when the class sets it on instances only."""
    value = getattr(cls, name, "")
    return str(value) if isinstance(value, str) else ""


def _table(entries: list[dict[str, Any]]) -> str:
    if not entries:
        return "  (none)"
    longest = max(entries, key=len)  # an optional column is there if any entry has it
    columns = [key for key in longest if key not in ("source", *_DETAILS)]
    widths = {key: max(len(str(entry.get(key, "-"))) for entry in entries) for key in columns}
    lines = [
        "  ".join(f"{entry.get(key, '-')!s:<{widths[key]}}" for key in columns).rstrip() for entry in entries
    ]
    return "\n".join(f"  {line}" for line in lines)


def _details(entries: list[dict[str, Any]]) -> str:
    """What of each method is as published and what is not, where its class says so."""
    told = [entry for entry in entries if any(key in entry for key in _DETAILS)]
    lines = []
    for entry in told:
        parts = "; ".join(f"{key}: {entry[key]}" for key in _DETAILS if key in entry)
        lines.append(f"  {entry['name']}: {parts}\n")
    return "\n" + "".join(lines) if lines else ""
