"""``pytest --evalharness-check`` on the toy model: rows become tests, and fail when they should."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml

from evalharness.gates.status import Status, Verdict
from evalharness.pytest_plugin import RowItem
from tests.evalharness.conftest import without_sum

REPOSITORY = Path(__file__).parents[2]
RUN = "model: toy\nmethods: toy-round\nworkers: 0\nprofile: false\n"


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the first test that needs a reference leaves its results for the others."""
    return tmp_path_factory.mktemp("kept") / "results.json"


@pytest.fixture
def reference(call: Callable[..., Any], kept: Path, tmp_path: Path) -> Path:
    """A folder as ``results/ci``: the results of a toy run and what made them."""
    folder = tmp_path / "reference"
    folder.mkdir()
    (folder / "run.yaml").write_text(RUN)
    if not kept.exists():
        assert call("run", "--config", "reference/run.yaml", "--output", "first").code == 0
        shutil.copy("first/results.json", kept)
    shutil.copy(kept, folder)
    (folder / "gates.yaml").write_text("gates:\n- {metric: mean, max_drop: 0.1}\n")
    return folder


@pytest.fixture
def check(toy_site: Path, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        path = os.pathsep.join([str(toy_site), str(REPOSITORY)])
        environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-p",
            "evalharness.pytest_plugin",
            "-p",
            "no:cacheprovider",
        ]
        command += ["reference", *arguments]
        return subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )

    return run


GIVEN = ("--evalharness-check", "--evalharness-reference", "reference")


def test_a_run_like_the_reference_passes(reference: Path, check: Callable[..., Any], tmp_path: Path) -> None:
    result = check(*GIVEN, "-v", "--junitxml", "j.xml", "--evalharness-markdown", "s.md")
    assert result.returncode == 0, result.stdout + result.stderr
    names = [case.get("name") for case in ElementTree.parse(tmp_path / "j.xml").getroot().iter("testcase")]
    assert names == ["evalharness_check[bf16]", "evalharness_check[toy-round-w3a3]"]
    assert (tmp_path / "s.md").read_text().startswith("# PASS")


def test_a_worse_run_fails_on_its_row_alone(reference: Path, check: Callable[..., Any]) -> None:
    """The stored scores of one row are raised, so that the run is worse than they."""
    import json

    path = reference / "results.json"
    record = json.loads(without_sum(path.read_text()))
    for cell in record["cells"]:
        if cell["method"] == "toy-round":
            cell["scores"] = {
                name: [
                    [prompt, sample, value + 0.1 + 0.001 * place]
                    for place, (prompt, sample, value) in enumerate(rows)
                ]
                for name, rows in cell["scores"].items()
            }
    path.write_text(json.dumps(record))
    result = check(*GIVEN)
    assert result.returncode == 1
    assert "1 failed, 1 passed" in result.stdout
    assert "REGRESSION mean: down by" in result.stdout
    only = check(*GIVEN, "-k", "bf16")
    assert "1 passed, 1 deselected" in only.stdout


def test_without_the_option_nothing_happens(reference: Path, check: Callable[..., Any]) -> None:
    assert check().returncode == pytest.ExitCode.NO_TESTS_COLLECTED


def test_a_run_that_fails_shows_why(reference: Path, check: Callable[..., Any]) -> None:
    (reference / "run.yaml").write_text("model: toy\nmethods: toy-rond\n")
    result = check(*GIVEN)
    assert result.returncode == 1
    assert "2 failed" in result.stdout
    assert "did you mean 'toy-round'" in result.stdout


@pytest.mark.parametrize(
    ("missing", "words"),
    [("results.json", "no such file"), ("run.yaml", "it says what to run"), ("", "no such run folder")],
)
def test_a_reference_that_lacks_a_file(
    reference: Path, check: Callable[..., Any], missing: str, words: str
) -> None:
    if missing:
        (reference / missing).unlink()
    given = GIVEN if missing else (*GIVEN, "--evalharness-reference", "nowhere")
    result = check(*given)
    assert result.returncode == pytest.ExitCode.USAGE_ERROR
    assert words in result.stderr


def test_the_workflow_calls_what_there_is() -> None:
    """Its command's options are the plugin's, and the reference it names is complete."""
    from evalharness.gates.spec import read_gates

    text = (REPOSITORY / "docs/examples/ci/evalharness-check.yml").read_text()
    [command] = [
        step["run"]
        for step in yaml.safe_load(text)["jobs"]["check"]["steps"]
        if "--evalharness" in step.get("run", "")
    ]
    help_text = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "evalharness.pytest_plugin", "--help"],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    words = command.split()
    assert all(word in help_text for word in words if word.startswith("--evalharness"))
    folder = REPOSITORY / words[words.index("--evalharness-reference") + 1]
    assert (folder / "results.json").is_file() and (folder / "run.yaml").is_file()
    assert read_gates(folder / "gates.yaml").significance == 0.01


@pytest.mark.parametrize(("status", "is_green"), [(Status.PASS, True), (Status.INCOMPLETE, False)])
def test_what_is_judged_of_no_row_fails_every_row(status: Status, is_green: bool) -> None:
    """Times of hot paths have rows of their own; a gate on them that could not be judged is no pass."""
    verdicts = [
        Verdict(row="rtn-w4a4", metric="mean", status=Status.PASS, reason=""),
        Verdict(row="(timings)", metric="timings", status=status, reason="no times were given"),
    ]
    once = SimpleNamespace(
        report=lambda: SimpleNamespace(verdicts=verdicts),
        rows=frozenset({"rtn-w4a4"}),
        reference="results/ci",
    )
    item: Any = SimpleNamespace(_row="rtn-w4a4", _once=once)
    with contextlib.nullcontext() if is_green else pytest.raises(pytest.fail.Exception, match="no times"):
        RowItem.runtest(item)
