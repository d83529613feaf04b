"""``evalharness fetch``: what is not installed with the harness."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from evalharness.cli.parsing import Parser
from evalharness.errors import UserError, unknown

__all__ = ["execute"]

_VBENCH = "vbench"


def execute(arguments: list[str]) -> int:
    """Make the environment of ``vbench``, or download a model's weights; or say that they are there."""
    parser = Parser(
        "fetch",
        "Download a model's weights from its hub, checked and resumable; or make the environment of the "
        "package vbench, with versions that work.",
    )
    parser.add_argument("what", metavar="WHAT", help=f"{_VBENCH}, or the name of a model")
    parser.add_argument("--out", default=None, metavar="DIR", help="of a model: where to (the user's cache)")
    parser.add_argument("--revision", default=None, help="of a model: commit, branch or tag (the pinned one)")
    parser.add_argument(
        "--verify", action="store_true", help="of a model: check what is there, download nothing"
    )
    parser.add_argument(
        "--env", default=None, metavar="DIR", help="of vbench: where to (in the user's cache)"
    )
    parser.add_argument("--python", default=None, metavar="EXE", help="of vbench: Python 3.11 (this one)")
    parser.add_argument("--dry-run", action="store_true", help="say what would be done and stop")
    parser.add_plugins()
    options = parser.parse_args(arguments)
    return _vbench(options) if options.what == _VBENCH else _model(options)


def _model(options: argparse.Namespace) -> int:
    from evalharness.machine.fetch import Hub, fetch, verify, wanted
    from evalharness.models.video.folder import check_folder, models_cache
    from evalharness.registry import Registry

    registry = Registry(options.plugin)
    names = [name for name in registry.names("models") if name == options.what]
    spec: Any = getattr(registry.get("models", names[0]), "spec", None) if names else None
    if not names:
        raise unknown("thing to fetch", options.what, (_VBENCH, *registry.names("models")))
    if spec is None or not spec.repo:
        raise UserError(
            f"fetch {options.what}: nothing to fetch; this model comes with the package or by --weights"
        )
    folder = Path(options.out) if options.out else models_cache() / spec.name
    revision = options.revision or spec.revision
    if options.verify:
        wrong = verify(folder)
        print(
            f"{folder}: {'all files are right' if not wrong else 'missing or damaged: ' + ', '.join(wrong)}"
        )
        return 1 if wrong else 0
    if options.dry_run:
        listing = Hub().listing(spec.repo, revision or "main")
        files = wanted(listing)
        size = sum(file.size for file in files) / 1e9
        print(
            f"{spec.repo} at {listing.revision}: {len(files)} files, {size:.1f} GB, licence {listing.licence}"
        )
        return 0
    if revision is None:
        print(f"no revision of {spec.repo} is pinned: the newest is taken and recorded; --revision fixes it")
    listing = fetch(Hub(), spec.repo, revision, folder, print)
    check_folder(folder, spec)
    size = sum(file.size for file in listing.files) / 1e9
    print(f"{folder}: {spec.repo} at {listing.revision}, {size:.1f} GB, licence {listing.licence}")
    return 0


def _vbench(options: argparse.Namespace) -> int:
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
