"""What a test draws depends on no other test, on no earlier run, and costs no import of torch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve()

DRAWS = """
import json
import random
from pathlib import Path

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st


def draw():
    return [random.random(), numpy.random.rand(), torch.rand(()).item(), torch.randint(0, 999, ()).item()]


def note(name, value):
    with Path("drawn.txt").open("a") as file:
        file.write(json.dumps([name, value]) + "\\n")


@pytest.fixture(scope="session")
def shared():
    return draw()


@pytest.fixture(scope="module", params=[1, 2])
def made_in_turn(request):
    return [draw() for _ in range(request.param)]


@pytest.fixture
def own(shared):
    return draw()


def test_shared(shared):
    note("shared", [shared, draw()])


def test_own(own):
    import numbers_of_mine

    note("own", [own, numbers_of_mine.FIRST, draw()])


def test_both(own, shared):
    note("both", [own, shared, draw()])


def test_in_turn(made_in_turn, own):
    note(f"in turn {len(made_in_turn)}", [made_in_turn, own, draw()])


@given(st.lists(st.floats() | st.integers() | st.text(), max_size=9))
def test_examples(values):
    note("examples", repr(values))


def test_order_of_a_set():
    note("set", list({f"member {i}" for i in range(50)}))
"""
NUMBERS = "FIRST = 83_271\n" + "".join(
    f"N{i} = {i * 7919 + 100_003}; W{i} = 'word {i}'\n" for i in range(200)
)


def run(folder: Path, *arguments: str) -> None:
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--import-mode=importlib", "-q"]
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    environment = {k: v for k, v in environment.items() if k not in ("CI", "PYTHONHASHSEED")}
    done = subprocess.run(
        [*command, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def prepare(folder: Path, tests: str) -> Path:
    (folder / "conftest.py").write_text((HERE.parent / "conftest.py").read_text())
    (folder / "test_draws.py").write_text(tests)
    (folder / "numbers_of_mine.py").write_text(NUMBERS)
    return folder


def drawn(folder: Path, *arguments: str) -> dict[str, list[str]]:
    """What each test noted, line by line."""
    noted: dict[str, list[str]] = {}
    (folder / "drawn.txt").write_text("")
    run(folder, *arguments)
    for line in (folder / "drawn.txt").read_text().splitlines():
        noted.setdefault(line.partition(",")[0], []).append(line)
    return noted


def test_every_test_draws_the_same_in_any_order_and_alone(tmp_path: Path) -> None:
    """In processes of xdist, since a hash of words is chosen before Python starts."""
    prepare(tmp_path, DRAWS)
    names = ["shared", "own", "both", "in_turn", "examples", "order_of_a_set"]
    ids = [f"test_draws.py::test_{name}" for name in names]
    first = drawn(tmp_path, "-n", "1", *ids)
    assert len(first) == len(names) + 1 and len(first['["examples"']) == 100
    assert drawn(tmp_path, "-n", "1", *ids[::-1]) == first
    alone = drawn(tmp_path, "-n", "1", ids[4])
    assert alone == {'["examples"': first['["examples"']}


def test_no_test_pays_for_torch_that_it_does_not_use(tmp_path: Path) -> None:
    test = "import sys\n\n\ndef test_it():\n    assert not {'torch', 'numpy'} & set(sys.modules)\n"
    run(prepare(tmp_path, test))
