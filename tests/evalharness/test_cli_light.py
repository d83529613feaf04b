"""The commands that must answer at once: what they import, what they cost, what they say."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from evalharness.cli.main import VERBS

HEAVY = {"torch", "pandas", "diffusers", "transformers", "numpy", "cv2", "av", "pydantic", "matplotlib"}

TELL_MODULES = """
import sys
from evalharness.cli.main import main
code = main(sys.argv[1:])
print("\\n@" + ",".join(sorted({name.partition(".")[0] for name in sys.modules})))
sys.exit(code)
"""

LIGHT = [["--help"], ["--version"], ["ls"], ["ls", "methods", "--json"]]
LIGHT += [[verb, "--help"] for verb in VERBS]


@pytest.mark.parametrize("arguments", LIGHT, ids=" ".join)
def test_no_heavy_import(arguments: list[str]) -> None:
    command = [sys.executable, "-c", TELL_MODULES, *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if "--help" in arguments[1:]:
        assert result.returncode == 0, result.stderr
        assert "usage: evalharness" in result.stdout
        command[2] = TELL_MODULES.replace("code = main(sys.argv[1:])", SURVIVE_EXIT)
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    modules = set(result.stdout.rpartition("@")[2].strip().split(","))
    assert "evalharness" in modules
    assert not modules & HEAVY


SURVIVE_EXIT = """
try:
    main(sys.argv[1:])
except SystemExit:
    pass
code = 0
"""


COUNT_CALLS = """
import sys
calls = 0
def count(frame, event, argument):
    global calls
    calls += event in ("call", "c_call")
sys.setprofile(count)
from evalharness.cli.main import main
try:
    main(sys.argv[1:])
except SystemExit:
    pass
sys.setprofile(None)
print("\\n@" + str(calls))
"""


@pytest.mark.parametrize(
    ("arguments", "most"), [(["--help"], 60_000), (["run", "--help"], 350_000), (["ls"], 350_000)], ids=str
)
def test_answers_with_little_work(arguments: list[str], most: int) -> None:
    """Promised are 0.3 seconds; how many calls it takes, imports included, does not hang on the machine.

    28,000, 232,000 and 255,000 when this was written; NumPy alone takes 145,000.
    """
    command = [sys.executable, "-c", COUNT_CALLS, *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert 10_000 < int(result.stdout.rpartition("@")[2]) < most


def ls(toy_site: Path, *arguments: str) -> Any:
    environment = {**os.environ, "PYTHONPATH": str(toy_site)}
    command = [sys.executable, "-m", "evalharness", "ls", *arguments, "--json"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return json.loads(result.stdout)


def test_ls_tells_what_a_method_needs_and_whose_it_is(toy_site: Path) -> None:
    entry = next(e for e in ls(toy_site, "methods") if e["name"] == "toy-train")
    assert entry == {
        "name": "toy-train",
        "needs": "training",
        "paper": "none",
        "summary": "train a little, then round",
        "source": "toybench",
    }


def test_ls_tells_what_is_exact_and_what_adapted(toy_site: Path) -> None:
    command = [sys.executable, "-m", "evalharness", "ls", "methods"]
    environment = {**os.environ, "PYTHONPATH": str(toy_site)}
    text = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    told = {e["name"]: e for e in ls(toy_site, "methods") if "exact" in e}
    assert {"gptq", "svdquant", "viditq"} <= set(told)
    for name, entry in told.items():
        assert entry["bits"] == "W2-8 A2-8"
        assert f"  {name}: exact: {entry['exact']}" in text
    assert "adapted" in told["qdm"] and "adapted" not in told["rtn-minmax"]
    plain = next(line for line in text.splitlines() if line.startswith("  toy-train "))
    assert plain.split()[1:3] == ["training", "-"], "a plugin need not say its bits"


def test_ls_tells_what_a_metric_measures(toy_site: Path) -> None:
    entry = next(e for e in ls(toy_site, "metrics") if e["name"] == "toy.motion")
    assert entry["dimension"] == "motion"
    assert entry["range"] == "0..1"
    assert entry["better"] == "higher"
    assert entry["faithful_to"] == "none"


def test_ls_of_everything_has_all_five_kinds(toy_site: Path) -> None:
    listed = ls(toy_site)
    assert list(listed) == ["methods", "models", "protocols", "metrics", "reporters"]
    assert {"csv", "markdown", "html"} <= {entry["name"] for entry in listed["reporters"]}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["rum"],
            "unknown verb 'rum'; did you mean 'run'? Allowed: check, compare, data, doctor, export, fetch, "
            "leaderboard, ls, ",
        ),
        (["ls", "metricks"], "unknown kind 'metricks'; did you mean 'metrics'?"),
        (["ls", "--jsn"], "unknown flag '--jsn'; did you mean '--json'?"),
        (["run", "--metods", "a"], "unknown flag '--metods'; did you mean '--methods'?"),
        (["run", "--limit", "few"], "--limit few: expected int"),
        (["run", "stray"], "unexpected argument 'stray'"),
        (["score"], "the following arguments are required: RUN"),
        (["score", "nowhere"], "nowhere is not a run folder"),
        (["report", "nowhere"], "nowhere has no results.json"),
        (["run", "--config", "nowhere.yaml"], "nowhere.yaml"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    call: Callable[..., Any], arguments: list[str], words: str
) -> None:
    result = call(*arguments)
    assert result.code == 2
    assert result.out == ""
    [line] = result.errors
    assert line.startswith("error: ")
    assert words in line


def test_nothing_asked_shows_the_usage(call: Callable[..., Any]) -> None:
    result = call()
    assert result.code == 2
    assert all(verb in result.out for verb in VERBS)


def test_debug_shows_the_traceback(call: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match="unknown verb"):
        call("rum", "--debug")
