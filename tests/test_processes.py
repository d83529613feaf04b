"""Who descends from whom, held against processes that were started here."""

from __future__ import annotations

import os
import subprocess
import sys

from benchmarks.processes import below, words

CHILD = """
import subprocess, sys
with subprocess.Popen([sys.executable, "-c", "input()", "grandchild"]) as process:
    print(process.pid, flush=True)
"""


def test_children_and_their_children_are_found() -> None:
    command = [sys.executable, "-c", CHILD]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None and child.stdin is not None
        grandchild = int(child.stdout.readline())
        assert {child.pid, grandchild} <= below(os.getpid())
        assert below(child.pid) == {grandchild} and below(grandchild) == set()
        assert words(grandchild).split()[-1] == "grandchild"
        child.stdin.close()
    assert words(grandchild) == "" and grandchild not in below(os.getpid())
