"""Test hooks, off unless the environment says so: pause, fail or die at a named place."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path


def reach(place: str) -> None:
    """Called at ``stage/what``.

    ``TOY_FAIL=generate/two`` raises there (comma list), ``TOY_REFUSE=generate/two`` a user's mistake,
    ``TOY_DIE=generate/two`` kills the process,
    ``TOY_PAUSE=generate:3`` sleeps at the third visit of that stage by any process.
    ``TOY_SLOW=0.2`` makes every visit take that many seconds.
    ``TOY_LOG`` is a folder where each stage has a file with one line per visit, "pid place", so that
    a test can wait until a process is inside.
    """
    log = os.environ.get("TOY_LOG")
    visits = 1
    if log:
        file = Path(log) / place.partition("/")[0]
        with file.open("a") as stream:
            stream.write(f"{os.getpid()} {place}\n")
        visits = len(file.read_text().splitlines())
    time.sleep(float(os.environ.get("TOY_SLOW", "0")))
    stage, _, number = os.environ.get("TOY_PAUSE", "").partition(":")
    if stage and place.startswith(stage) and visits == int(number or 1):
        time.sleep(600)
    if place in os.environ.get("TOY_FAIL", "").split(","):
        raise RuntimeError(f"asked to fail at {place}")
    if place in os.environ.get("TOY_REFUSE", "").split(","):
        raise ValueError(f"asked to refuse at {place}")
    if place in os.environ.get("TOY_DIE", "").split(","):
        os.kill(os.getpid(), signal.SIGKILL)
