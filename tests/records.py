"""What a record holds, and what the documents' tables say of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RECORDS = ROOT / "results" / "benchmarks"


def record(name: str) -> Any:
    return json.loads((RECORDS / name).read_text())


def row(document: str, first: str) -> list[str]:
    """The cells of the one table row of ``document`` that begins with ``first``."""
    lines = (ROOT / "docs" / document).read_text().splitlines()
    [line] = [line for line in lines if line.startswith(f"| {first} |")]
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


def over(sides: Any, side: str, base: str) -> float:
    return float(sides[side]["median_ms"] / sides[base]["median_ms"])
