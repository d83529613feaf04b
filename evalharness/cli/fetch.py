"""``evalharness fetch``: what is not installed with the harness."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from evalharness.cli.parsing import Parser
from evalharness.errors import UserError, unknown

__all__ = ["execute"]

_THINGS = ("vbench", "weights")
_OF = {
    "env": "vbench",
    "python": "vbench",
    "only": "weights",
    "vbench_cache": "weights",
}


def execute(arguments: list[str]) -> int:
    """Get the thing, or say that it is there; exit code 1 if a download failed."""
    parser = Parser(
        "fetch",
        "vbench: make the environment of the package vbench, with versions that work. "
        "weights: download the weights of VBench's metrics into VBench's own cache, and convert them.",
    )
    parser.add_argument("what", metavar="WHAT", help=", ".join(_THINGS))
    parser.add_argument("--env", default=None, metavar="DIR", help="vbench: where to (in the user's cache)")
    parser.add_argument("--python", default=None, metavar="EXE", help="vbench: Python 3.11 (this one)")
    parser.add_argument("--only", default=None, metavar="A,B", help="weights: of these dimensions (all)")
    parser.add_argument("--vbench-cache", default=None, metavar="DIR", help="weights: where to (VBench's)")
    parser.add_argument("--dry-run", action="store_true", help="print what would be done and stop")
    options = parser.parse_args(arguments)
    if options.what not in _THINGS:
        raise unknown("thing to fetch", options.what, _THINGS)
    for name, thing in _OF.items():
        if getattr(options, name) is not None and thing != options.what:
            raise UserError(f"--{name.replace('_', '-')} is for: evalharness fetch {thing}")
    return _environment(options) if options.what == "vbench" else _weights(options)


def _environment(options: argparse.Namespace) -> int:
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


def _weights(options: argparse.Namespace) -> int:
    from evalharness.config import comma_list
    from evalharness.protocols.vbench_suite import DIMENSIONS
    from evalharness.upstream.download import download
    from evalharness.upstream.files import cache_folder, files_of

    wanted = comma_list(options.only or DIMENSIONS)
    for name in wanted:
        if name not in DIMENSIONS:
            raise unknown("dimension", name, DIMENSIONS)
    folder = Path(options.vbench_cache) if options.vbench_cache else cache_folder()
    failed = 0
    for file in files_of(wanted):
        target = folder / file.path
        if target.is_file():
            print(f"{file.path}: is there")
        elif options.dry_run:
            print(f"{file.path}: {file.megabytes:g} MB from {file.url} ({file.licence})")
        else:
            problem = download(file, target)
            failed += problem is not None
            print(f"{file.path}: {problem or f'{target} ({file.licence})'}")
    if not options.dry_run:
        print(f"for the native metrics: python -m evalharness.native.convert --vbench-cache {folder}")
    return 1 if failed else 0
