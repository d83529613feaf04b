"""``evalharness fetch``: what is not installed with the harness."""

from __future__ import annotations

from pathlib import Path

from evalharness.cli.parsing import Parser
from evalharness.errors import unknown

__all__ = ["execute"]

_THINGS = ("vbench",)


def execute(arguments: list[str]) -> int:
    """Make the environment, or say that it is there."""
    parser = Parser("fetch", "Make the environment of the package vbench, with versions that work.")
    parser.add_argument("what", metavar="WHAT", help=", ".join(_THINGS))
    parser.add_argument("--env", default=None, metavar="DIR", help="where to (in the user's cache)")
    parser.add_argument("--python", default=None, metavar="EXE", help="interpreter, Python 3.11 (this one)")
    parser.add_argument("--dry-run", action="store_true", help="print the commands and stop")
    options = parser.parse_args(arguments)
    if options.what not in _THINGS:
        raise unknown("thing to fetch", options.what, _THINGS)

    import sys

    from evalharness.upstream.environment import commands, default_folder, fetch
    from evalharness.upstream.pins import NEEDS_DETECTRON2

    folder = Path(options.env) if options.env else default_folder()
    python = options.python or sys.executable
    if options.dry_run:
        for command in commands(folder, python):
            print(" ".join(command))
        return 0
    done = fetch(folder, python=python)
    print(f"{folder}: {'made' if done else 'is there, nothing to do'}")
    print(
        f"not in it: detectron2, which is not on PyPI; {', '.join(NEEDS_DETECTRON2)} need it built from "
        "source (https://github.com/facebookresearch/detectron2) into this environment"
    )
    return 0
