"""The toy plugin package, installed for real, and two ways to call the command line with it."""

from __future__ import annotations

import importlib
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from evalharness.cli.main import main

PACKAGE = Path(__file__).parents[1] / "plugin_package"
REPOSITORY = Path(__file__).parents[2]


@dataclass(frozen=True)
class Finished:
    code: int
    out: str
    err: str

    @property
    def errors(self) -> list[str]:
        """Lines of standard error that are not progress."""
        return [line for line in self.err.splitlines() if line]


Call = Callable[..., Finished]


@pytest.fixture(scope="session")
def toy_site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which pip installed the third-party package, from a copy, without a network."""
    source = tmp_path_factory.mktemp("source") / "toybench"
    shutil.copytree(PACKAGE, source, ignore=shutil.ignore_patterns("__pycache__"))
    site = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    command += ["--no-index", "--disable-pip-version-check", "--target", str(site), str(source)]
    subprocess.run(command, check=True, capture_output=True)
    return site


@pytest.fixture
def toy(toy_site: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The toy package importable in this process."""
    monkeypatch.syspath_prepend(toy_site)
    importlib.invalidate_caches()
    for name in ("TOY_FAIL", "TOY_DIE", "TOY_PAUSE", "TOY_LOG", "TOY_PUBLISHED"):
        monkeypatch.delenv(name, raising=False)
    return toy_site


@pytest.fixture
def call(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Call:
    """``call("run", "--bits", "3")`` in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> Finished:
        capfd.readouterr()
        code = main(list(arguments))
        out, err = capfd.readouterr()
        return Finished(code, out, err)

    return run


@pytest.fixture
def toy_run(call: Call) -> Call:
    """``run`` of the toy model, in this process, into ``./out``."""

    def run(*arguments: str) -> Finished:
        return call("run", "--model", "toy", "--workers", "0", "--output", "out", *arguments)

    return run


@pytest.fixture
def start(toy_site: Path, tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """Start ``python -m evalharness ...`` as a process of its own, in the same empty folder."""

    def popen(*arguments: str, **environment: str) -> subprocess.Popen[str]:
        path = os.pathsep.join([str(toy_site), str(REPOSITORY)])
        env = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **environment}
        return subprocess.Popen(
            [sys.executable, "-m", "evalharness", *arguments],
            cwd=tmp_path,
            env=env,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            # A suite started in the background inherits an ignored Ctrl-C; a person's run does not.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    return popen


def without_sum(text: str) -> str:
    """``results.json`` that may be changed by hand."""
    short = re.sub(r',\n "crc": "[0-9a-f]{8}"\n}\n\Z', "\n}\n", text)
    assert short != text
    return short


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file below ``folder`` with its bytes."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
