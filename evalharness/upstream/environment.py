"""Makes the environment in which the package ``vbench`` runs, apart from the harness's own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from evalharness.errors import UserError
from evalharness.hashing import digest
from evalharness.store import atomic_write_json, read_json
from evalharness.upstream.driver import Upstream
from evalharness.upstream.pins import DETECTRON2, LVIS, PINS, WITH_DETECTRON2, WITHOUT_DEPENDENCIES

__all__ = [
    "add_detectron2",
    "commands",
    "default_folder",
    "detectron2_commands",
    "fetch",
    "find",
    "has_detectron2",
    "pins_hash",
]

RECORD = "evalharness.json"
Runner = Callable[[Sequence[str]], None]


def default_folder() -> Path:
    """``$XDG_CACHE_HOME/evalharness/vbench``, where XDG_CACHE_HOME is ``~/.cache`` by default."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "evalharness" / "vbench"


def find(folder: Path | None = None) -> Upstream | None:
    """The environment at ``folder``; None if there is none, it is not finished, or has other pins."""
    folder = folder or default_folder()
    record = read_json(folder / RECORD)
    if record is None or record.get("pins") != pins_hash():
        return None
    return Upstream(python=_python(folder))


def commands(folder: Path, python: str) -> list[list[str]]:
    """What is run to make it, in order."""
    pip = [str(_python(folder)), "-m", "pip", "install", "--disable-pip-version-check"]
    return [
        [python, "-m", "venv", "--clear", str(folder)],
        [*pip, *PINS],
        [*pip, "--no-deps", *WITHOUT_DEPENDENCIES],
    ]


def detectron2_commands(folder: Path, source: str = DETECTRON2) -> list[list[str]]:
    """What is run to build detectron2 into the environment at ``folder``, in order.

    Args:
        folder: of the environment.
        source: what pip builds: an address, an archive, or the folder of a checkout. Without ``://`` it is
            a path: pip would ask the package index for a folder named without a slash, ``detectron2`` say.
    """
    source = source if "://" in source else str(Path(source).absolute())
    pip = [str(_python(folder)), "-m", "pip", "install", "--disable-pip-version-check"]
    # Its build imports torch. Its bounds, and NumPy's newest for what it imports, would replace what the
    # other dimensions run with: the pins are asked for again.
    return [[*pip, *PINS, *WITH_DETECTRON2], [*pip, "--no-build-isolation", "--no-deps", LVIS, source]]


def has_detectron2(folder: Path) -> bool:
    """Whether detectron2 is installed in the environment at ``folder``."""
    return any(folder.glob("lib/python*/site-packages/detectron2/__init__.py"))


def add_detectron2(folder: Path, source: str = DETECTRON2, *, run: Runner | None = None) -> bool:
    """Build detectron2 into an environment that ``fetch`` made, unless it is there.

    Returns:
        Whether there was anything to do.

    Raises:
        UserError: no environment is there, or a command failed; names the command.
    """
    if find(folder) is None:
        raise UserError(f"{folder}: no environment of vbench; make it with: evalharness fetch vbench")
    if has_detectron2(folder):
        return False
    for command in detectron2_commands(folder, source):
        (run or _run)(command)
    return True


def fetch(folder: Path, *, python: str = sys.executable, run: Runner | None = None) -> bool:
    """Make the environment unless it is there; a half-made one is begun anew.

    Args:
        folder: where to; empty, absent, or an earlier one.
        python: interpreter to build on; the pins are for 3.11.
        run: how to run a command.

    Returns:
        Whether there was anything to do.

    Raises:
        UserError: ``folder`` holds other things, or a command failed; names the command.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; choose another folder")
    if find(folder) is not None:
        return False
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "pyvenv.cfg").is_file():
        raise UserError(f"{folder} is not empty and no Python environment; choose another folder")
    (folder / RECORD).unlink(missing_ok=True)
    for command in commands(folder, python):
        (run or _run)(command)
    atomic_write_json(folder / RECORD, {"pins": pins_hash(), "installed": [*PINS, *WITHOUT_DEPENDENCIES]})
    return True


def _run(command: Sequence[str]) -> None:
    try:
        code = subprocess.run(list(command), check=False).returncode
    except OSError as error:
        raise UserError(f"{command[0]}: {error.strerror}") from error
    if code:
        raise UserError(
            f"failed with {code}: {' '.join(command[:4])} ...; what pip says above tells why, "
            "and the same command begins anew"
        )


def _python(folder: Path) -> Path:
    return folder / "bin" / "python"


def pins_hash() -> str:
    """Hash of what the environment is made of."""
    return digest([PINS, WITHOUT_DEPENDENCIES])
