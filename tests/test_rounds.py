"""``pytest --rounds``: every test has its turn before any has a second one."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any, cast

import pytest

from tests.conftest import in_rounds

HERE = Path(__file__).resolve()


class Item:
    def __init__(self, nodeid: str) -> None:
        self.nodeid = nodeid


def order(names: list[str]) -> list[str]:
    return [item.nodeid for item in in_rounds(cast(Any, [Item(name) for name in names]))]


def test_one_case_of_each_then_a_second() -> None:
    names = ["t.py::alone", *(f"t.py::many[{i}]" for i in range(12)), *(f"u.py::some[{i}]" for i in range(3))]
    found = order(names)
    assert sorted(found) == sorted(names)
    assert order(names[::-1]) != found and set(order(names[::-1])[:3]) == set(found[:3])
    whose = [name.partition("[")[0] for name in found]
    assert whose[:7] == ["t.py::alone", *["t.py::many", "u.py::some"] * 3]
    assert whose[7:] == ["t.py::many"] * 9
    many = [name for name in found if "many" in name]
    assert many != sorted(many, key=lambda name: int(name[11:-1])), "the first cases are of no corner"


@pytest.mark.parametrize(("seconds", "wanted"), [(0, Counter(p=1)), (60, Counter(p=2))])
def test_a_session_ends_in_time_and_says_so(seconds: int, wanted: Counter[str], tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text((HERE.parent / "conftest.py").read_text())
    (tmp_path / "test_two.py").write_text("def test_a(): pass\ndef test_b(): pass\n")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--rounds", str(seconds), "-q", "."]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert Counter(done.stdout.splitlines()[0].split()[0].replace(".", "p")) == wanted, done.stdout
    assert ("the time of --rounds is over" in done.stdout) == (seconds == 0)
