"""Makes ``data/vbench.json`` from VBench's own prompt file.

    pip download vbench==0.1.5 --no-deps
    python -m evalharness.protocols.vbench_data vbench-0.1.5-py3-none-any.whl

The file is taken from the wheel without installing it. Only what a protocol needs is kept: the text,
the suite and the flattened labels of each entry, in the order of the original.
"""

from __future__ import annotations

import hashlib
import json
import sys
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evalharness.errors import UserError
from evalharness.store import atomic_write_text, parse_json

__all__ = ["DATA", "PROMPT_FILE", "condense", "main", "read_prompt_file"]

DATA = Path(__file__).parent / "data" / "vbench.json"
PROMPT_FILE = "vbench/VBench_full_info.json"
SOURCE = {
    "package": "vbench 0.1.5 (PyPI)",
    "file": PROMPT_FILE,
    "project": "https://github.com/Vchitect/VBench",
    "licence": "Apache-2.0",
    "changes": "condensed: suites named once, labels flattened; texts and their order as they were",
}
_ACTION_MARK = "person is "
_MOST_BYTES = 64 << 20


def read_prompt_file(path: Path) -> bytes:
    """The bytes of VBench's prompt file: of ``path`` itself, or of the member of a wheel.

    Raises:
        UserError: no such file, or a wheel without the member.
    """
    try:
        if path.suffix != ".whl":
            return path.read_bytes()
        with zipfile.ZipFile(path) as wheel:
            if (size := wheel.getinfo(PROMPT_FILE).file_size) > _MOST_BYTES:
                raise UserError(f"{path}: {PROMPT_FILE} would take {size} bytes; that is not VBench's")
            return wheel.read(PROMPT_FILE)
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: {error}; expected the vbench wheel or its {PROMPT_FILE}") from error


def condense(data: bytes) -> dict[str, Any]:
    """What ``data/vbench.json`` holds, from the bytes of the original.

    Raises:
        UserError: an entry of another form than VBench 1.0's.
    """
    suites: dict[tuple[str, ...], str] = {}
    entries = []
    try:
        for entry in parse_json(data):
            dimensions = tuple(entry["dimension"])
            suite = suites.setdefault(dimensions, dimensions[0])
            entries.append([entry["prompt_en"], suite, _labels(entry)])
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise UserError(f"not VBench's prompt file: {type(error).__name__}: {error}") from error
    return {
        "source": {**SOURCE, "sha256": hashlib.sha256(data).hexdigest()},
        "suites": {name: list(dimensions) for dimensions, name in suites.items()},
        "entries": entries,
    }


def _labels(entry: Mapping[str, Any]) -> dict[str, str]:
    """All labels of an entry; those of scene and spatial_relationship lie one level deeper."""
    labels: dict[str, str] = {}
    for dimension, told in entry.get("auxiliary_info", {}).items():
        inner = told.get(dimension, told)
        labels |= inner if isinstance(inner, dict) else {dimension: inner}
    if "human_action" in entry["dimension"]:
        labels["action"] = entry["prompt_en"].split(_ACTION_MARK, 1)[1]
    return labels


def _text(value: Mapping[str, Any]) -> str:
    """JSON with one line for each entry, so that a difference can be read."""
    head = {key: value[key] for key in ("source", "suites")}
    lines = ",\n".join(json.dumps(entry, ensure_ascii=False) for entry in value["entries"])
    return f'{json.dumps(head, indent=1)[:-2]},\n "entries": [\n{lines}\n]}}\n'


def main(arguments: Sequence[str]) -> int:
    """Write the data file from the wheel or prompt file named in ``arguments``."""
    if len(arguments) != 1:
        sys.stderr.write("usage: python -m evalharness.protocols.vbench_data WHEEL_OR_JSON\n")
        return 2
    try:
        value = condense(read_prompt_file(Path(arguments[0])))
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    atomic_write_text(DATA, _text(value))
    sys.stdout.write(f"{DATA.name}: {len(value['entries'])} entries\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
