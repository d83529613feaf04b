"""Tiny pipelines, saved once a session, and the command line on them."""

from __future__ import annotations

import gc
import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from evalharness.cli.main import main


def _tiny() -> ModuleType:
    spec = importlib.util.spec_from_file_location("tiny_pipelines", Path(__file__).parent / "tiny.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["tiny_pipelines"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def tiny() -> ModuleType:
    module = _tiny()
    gc.collect()
    gc.freeze()  # the libraries it imports: whoever reads a transformer collects what the last one left
    return module


@pytest.fixture(scope="session")
def folders(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Kind of pipeline -> its saved folder; not to be changed."""
    root = tmp_path_factory.mktemp("pipelines")
    made: dict[str, Path] = {}

    def folder(kind: str) -> Path:
        if kind not in made:
            made[kind] = tiny.save(kind, root / kind)
        return made[kind]

    return folder


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees or fills the user's cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def flags(tiny: ModuleType, folders: Callable[[str], Path]) -> Callable[..., list[str]]:
    """Flags that name a tiny pipeline: ``flags("wan2.1", steps=3)``."""

    def made(kind: str, **settings: Any) -> list[str]:
        _, name, generation = tiny.KINDS[kind]
        chosen = json.dumps({**generation, **settings})
        return ["--model", name, "--weights", str(folders(kind)), "--generation", chosen]

    return made


@pytest.fixture
def run(
    flags: Callable[..., list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> Callable[..., list[str]]:
    """A run of the smoke protocol on a tiny pipeline, in this process, into ``out`` of the working folder.

    ``run("wan2.1", "--bits", "4", steps=3)`` says how it was started, so that it can be done again.
    """
    monkeypatch.chdir(tmp_path)

    def ran(kind: str, *more: str, limit: int = 1, **settings: Any) -> list[str]:
        command = ["run", *flags(kind, **settings), "--protocol", "smoke", "--limit", str(limit)]
        command += ["--workers", "0", "--output", "out", *more]
        assert main(command) == 0, capfd.readouterr().err
        return command

    return ran
