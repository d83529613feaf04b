"""The workflows to copy: their form, and what their shell steps do when they are run."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "docs" / "examples" / "ci").glob("*.yml"))
EXPRESSION = re.compile(r"\$\{\{(.*?)\}\}")
NO_PLACE_FOR_STRANGERS = re.compile(r"title|body|head_ref|head\.ref|label|comment|message|email|name")


def steps(path: Path) -> list[dict[str, Any]]:
    jobs = yaml.safe_load(path.read_text())["jobs"].values()
    return [step for job in jobs for step in job["steps"]]


def script(file: str, name: str) -> str:
    [found] = [s["run"] for s in steps(ROOT / "docs" / "examples" / "ci" / file) if s.get("name") == name]
    return str(found)


def shell(text: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """As GitHub runs a step: bash, ending at the first failure."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", text],
        cwd=folder, env={**os.environ, "PATH": path, **environment},
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_there_are_three() -> None:
    assert [path.stem for path in FILES] == ["audit", "benchmarks", "evalharness-check"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_form(path: Path) -> None:
    """What GitHub needs, least rights, an end in sight, and no stranger's text within a shell line."""
    data = yaml.safe_load(path.read_text())
    assert {"name", True, "permissions", "jobs"} == set(data), "YAML 1.1 reads the key on as true"
    assert set(data[True]) <= {"pull_request", "workflow_dispatch", "schedule"}, "never pull_request_target"
    assert data["permissions"] == {"contents": "read"}
    for job in data["jobs"].values():
        assert job["runs-on"].startswith("ubuntu-") and 0 < job["timeout-minutes"] <= 60
        for step in job["steps"]:
            assert ("run" in step) != ("uses" in step)
            assert "uses" not in step or re.fullmatch(r"actions/[\w-]+@[0-9a-f]{40}", step["uses"])
            is_checkout = step.get("uses", "").startswith("actions/checkout@")
            assert not is_checkout or step["with"]["persist-credentials"] is False, "no token is left in .git"
            for expression in EXPRESSION.findall(step.get("run", "")):
                assert not NO_PLACE_FOR_STRANGERS.search(expression), expression
    assert "secrets." not in path.read_text()
    pins = re.findall(r"uses: (\S+)(.*)", path.read_text())
    assert pins and all(re.fullmatch(r" # v\d+\.\d+\.\d+", version) for _, version in pins), "for a reader"


def test_one_action_has_one_pin() -> None:
    pins = {step["uses"] for path in FILES for step in steps(path) if "uses" in step}
    assert len(pins) == len({pin.partition("@")[0] for pin in pins}) == 3


PLANTED = {
    "a job without a machine": ("runs-on: ubuntu-latest", "runs_on: ubuntu-latest"),
    "an event that is none": ("workflow_dispatch:", "workflow_dispatched:"),
    "a limit in words": ("timeout-minutes: ", "timeout-minutes: about "),
    "a right that is none": ("contents: read", "contents: reading"),
}


@pytest.mark.skipif(shutil.which("check-jsonschema") is None, reason="needs check-jsonschema")
@pytest.mark.parametrize("mistake", [None, *PLANTED])
def test_the_schema_of_workflows_takes_them_and_refuses_mistakes(mistake: str | None, tmp_path: Path) -> None:
    """By the schema that check-jsonschema carries: nothing is downloaded."""
    files = []
    for path in FILES:
        text = path.read_text()
        if mistake is not None:
            text = text.replace(*PLANTED[mistake])
            assert text != path.read_text()
        files.append(tmp_path / path.name)
        files[-1].write_text(text)
    for file in files:
        done = subprocess.run(
            ["check-jsonschema", "--builtin-schema", "vendor.github-workflows", str(file)],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert (done.returncode == 0) == (mistake is None), (file.name, done.stdout)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_shell_lines_parse_and_name_what_exists(path: Path, tmp_path: Path) -> None:
    for text in (step["run"] for step in steps(path) if "run" in step):
        plain = EXPRESSION.sub("0123abc", text)
        assert shell(f"bash -n <<'EOF'\n{plain}\nEOF", tmp_path).returncode == 0, text
        for module in re.findall(r"python -m ([\w.]+)", plain):
            assert (
                module in ("pip", "pytest", "pip_audit")
                or (ROOT / Path(*module.split("."))).with_suffix(".py").is_file()
            )
        for file in re.findall(r"(?:results|configs|docs)/[\w./-]+", plain):
            assert (ROOT / file).exists(), file


@pytest.mark.parametrize(
    ("file", "name"), [("benchmarks.yml", "Summary"), ("evalharness-check.yml", "Summary")]
)
def test_the_summary_is_shown_if_there_is_one(file: str, name: str, tmp_path: Path) -> None:
    text, summary = script(file, name), tmp_path / "summary"
    summary.write_text("before\n")
    assert shell(text, tmp_path, GITHUB_STEP_SUMMARY=str(summary)).returncode == 0
    assert summary.read_text() == "before\n"
    for report in ("check.md", "benchmarks.md"):
        (tmp_path / report).write_text(f"# {report}\n")
    assert shell(text, tmp_path, GITHUB_STEP_SUMMARY=str(summary)).returncode == 0
    assert summary.read_text().startswith("before\n# ")


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
@pytest.mark.parametrize("given", ["a commit", "none"])
def test_the_base_commit_is_laid_beside_the_head(given: str, tmp_path: Path) -> None:
    """In a small repository; without a pull request the expression is empty and the main branch is taken."""
    origin, head = tmp_path / "origin", tmp_path / "work" / "head"
    identity = "git -c user.name=a -c user.email=a@b"
    made = shell(
        f"git init -q -b main '{origin}' && cd '{origin}' && echo 1 > a && git add a "
        f"&& {identity} commit -qm 1 "
        f"&& git clone -q '{origin}' '{head}' && cd '{head}' && echo 2 > a && {identity} commit -qam 2",
        tmp_path,
    )
    assert made.returncode == 0, made.stderr
    base = shell("git rev-parse origin/main", head).stdout.strip()
    text = EXPRESSION.sub(
        base if given == "a commit" else "origin/main",
        script("benchmarks.yml", "Base commit beside the head"),
    )
    done = shell(text, head)
    assert done.returncode == 0, done.stderr
    assert (head.parent / "base" / "a").read_text() == "1\n" and (head / "a").read_text() == "2\n"


def test_options_of_the_check_are_those_of_the_plugin(tmp_path: Path) -> None:
    """The step's own line, with a reference that is not there: told as such, not as an unknown option."""
    text = script("evalharness-check.yml", "Check against results/ci")
    for path in ("runs/ci", "check.md", "check.xml"):
        assert f" {path}" in text
        text = text.replace(f" {path}", f" {tmp_path / path}")
    missing = text.replace("-reference results/ci", "-reference nowhere")
    assert missing != text
    done = shell(f"{missing} -p no:cacheprovider", ROOT)
    assert done.returncode == 4
    assert "--evalharness-check: nowhere: no such run folder" in done.stderr + done.stdout
