"""Commands that must not take long: by the processor's time, which other processes hardly change."""

from __future__ import annotations

import resource
import subprocess
from collections.abc import Sequence
from pathlib import Path


def run_within(
    seconds: float, command: Sequence[str], *, cwd: Path | None = None, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """The first of three runs that takes less than ``seconds``; one may share its core's caches."""
    took = []
    while len(took) < 3:
        before = _spent()
        done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=True)
        took.append(_spent() - before)
        if took[-1] < seconds:
            return done
    raise AssertionError(f"it took {', '.join(f'{each:.1f}' for each in took)} s, allowed are {seconds} s")


def _spent() -> float:
    """Of all children that ended."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return children.ru_utime + children.ru_stime
