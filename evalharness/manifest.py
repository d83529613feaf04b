"""``manifest.json``: what ran, with which code, on what. No environment, no credentials, no user paths."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evalharness.hashing import tree_sha256
from evalharness.redaction import redact
from evalharness.registry import Registry
from evalharness.runfolder import utc_now
from evalharness.store import read_record, write_record
from evalharness.versions import package_version

__all__ = ["finish_manifest", "git_state", "hardware", "new_entry", "probe", "start_manifest"]

SCHEMA_VERSION = 1
PACKAGES = (
    "evalharness",
    "torch",
    "diffusers",
    "transformers",
    "accelerate",
    "safetensors",
    "numpy",
    "pandas",
    "opencv-python-headless",
    "av",
)
_SECONDS_FOR_A_PROBE = 10


def new_entry(config: Mapping[str, Any], registry: Registry) -> dict[str, Any]:
    """The entry of a command that begins to work, without secrets."""
    entry = {
        "schema_version": SCHEMA_VERSION,
        "started": utc_now(),
        "finished": None,
        "config": dict(config),
        "versions": {
            "python": platform.python_version(),
            **{name: package_version(name) for name in PACKAGES},
        },
        "git": git_state(Path(__file__).parent),
        "code_sha256": tree_sha256(Path(__file__).parent, "*.py"),
        "hardware": hardware(),
        "plugins": registry.provenance(),
    }
    return dict(redact(entry))


def start_manifest(path: Path, entry: Mapping[str, Any]) -> None:
    """Write a new entry; earlier ones move into ``history``."""
    old = read_record(path) or {}
    history = [*old.get("history", []), {key: value for key, value in old.items() if key != "history"}]
    write_record(path, {**entry, "history": history if old else []})


def finish_manifest(path: Path, closing: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest, with the time and all plugins used filled in, which hold no secrets.

    Nothing else is touched: the file and its copy in the run's log must stay the same.
    """
    entry: dict[str, Any] = {**(read_record(path) or {}), **closing}
    write_record(path, entry)
    return entry


def git_state(folder: Path) -> dict[str, Any] | None:
    """Commit and dirty flag of the checkout that holds ``folder``; None when it is none."""
    commit = probe("git", "-C", str(folder), "rev-parse", "HEAD")
    tracked = probe("git", "-C", str(folder), "ls-files", "--error-unmatch", "__init__.py")
    if commit is None or tracked is None:
        return None  # also an installed copy that happens to lie inside somebody's checkout
    status = probe("git", "-C", str(folder), "status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "dirty": bool(status)}


def hardware() -> dict[str, Any]:
    """Processor, cores, memory and GPUs."""
    gpus = probe("nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader")
    return {
        "machine": platform.machine(),
        "system": platform.system(),
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "memory_gb": _memory_gigabytes(),
        "gpus": gpus.splitlines() if gpus else [],
    }


def probe(*command: str) -> str | None:
    """Output of a short command, or None when it is missing or fails."""
    program = shutil.which(command[0])
    if program is None:
        return None
    try:
        result = subprocess.run(
            [program, *command[1:]], capture_output=True, text=True, timeout=_SECONDS_FOR_A_PROBE, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() if result.returncode == 0 else None


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _memory_gigabytes() -> float | None:
    try:
        return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9, 1)
    except (ValueError, OSError):
        return None
