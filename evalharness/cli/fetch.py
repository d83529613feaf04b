"""``evalharness fetch``: what is not installed with the harness."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from evalharness.cli.parsing import Parser
from evalharness.errors import UserError, unknown

__all__ = ["execute"]

_THINGS = ("vbench", "weights")
_OF = {
    "env": "vbench",
    "python": "vbench",
    "detectron2": "vbench",
    "only": "weights",
    "vbench_cache": "weights",
    "out": "MODEL",
    "revision": "MODEL",
    "verify": "MODEL",
}


def execute(arguments: list[str]) -> int:
    """Get the thing, or say that it is there; exit code 1 if a download failed."""
    parser = Parser(
        "fetch",
        "MODEL: download a model's weights from its hub, checked and resumable. "
        "vbench: make the environment of the package vbench, with versions that work. "
        "weights: download the weights of VBench's metrics into VBench's own cache, and convert them.",
    )
    parser.add_argument("what", metavar="WHAT", help=f"{', '.join(_THINGS)}, or the name of a model")
    parser.add_argument("--out", default=None, metavar="DIR", help="MODEL: where to (the user's cache)")
    parser.add_argument("--revision", default=None, help="MODEL: commit, branch or tag (the pinned one)")
    parser.add_argument(
        "--verify", action="store_true", default=None, help="MODEL: check what is there, download nothing"
    )
    parser.add_argument("--env", default=None, metavar="DIR", help="vbench: where to (in the user's cache)")
    parser.add_argument("--python", default=None, metavar="EXE", help="vbench: Python 3.11 (this one)")
    parser.add_argument(
        "--detectron2",
        nargs="?",
        const="",
        default=None,
        metavar="SOURCE",
        help="vbench: build detectron2 into it, from a checkout or archive (from GitHub)",
    )
    parser.add_argument("--only", default=None, metavar="A,B", help="weights: of these dimensions (all)")
    parser.add_argument("--vbench-cache", default=None, metavar="DIR", help="weights: where to (VBench's)")
    parser.add_argument("--dry-run", action="store_true", help="print what would be done and stop")
    parser.add_plugins()
    options = parser.parse_args(arguments)
    asked = options.what if options.what in _THINGS else "MODEL"
    for name, thing in _OF.items():
        if getattr(options, name) is not None and thing != asked:
            raise UserError(f"--{name.replace('_', '-')} is for: evalharness fetch {thing}")
    if asked == "MODEL":
        return _model(options)
    return _environment(options) if asked == "vbench" else _weights(options)


def _model(options: argparse.Namespace) -> int:
    from evalharness.machine.fetch import Hub, fetch, verify, wanted
    from evalharness.models.video.folder import check_folder, models_cache
    from evalharness.registry import Registry

    registry = Registry(options.plugin)
    names = [name for name in registry.names("models") if name == options.what]
    spec: Any = getattr(registry.get("models", names[0]), "spec", None) if names else None
    if not names:
        raise unknown("thing to fetch", options.what, (*_THINGS, *registry.names("models")))
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
        print(
            f"no revision of {spec.repo} is pinned: the folder's own is kept, else the newest is taken and "
            "recorded; --revision fixes it"
        )
    listing = fetch(Hub(), spec.repo, revision, folder, print)
    check_folder(folder, spec)
    size = sum(file.size for file in listing.files) / 1e9
    print(f"{folder}: {spec.repo} at {listing.revision}, {size:.1f} GB, licence {listing.licence}")
    if listing.revision != spec.revision and spec.revision is not None:
        print(f"not the pinned revision: --revision {listing.revision} in every run, whose records keep it")
    return 0


def _environment(options: argparse.Namespace) -> int:
    from evalharness.upstream import environment
    from evalharness.upstream.pins import DETECTRON2, NEEDS_DETECTRON2

    folder = Path(options.env) if options.env else environment.default_folder()
    python = options.python or sys.executable
    wanted = options.detectron2 is not None
    source = options.detectron2 or DETECTRON2
    if options.dry_run:
        commands = environment.commands(folder, python)
        for command in commands + (environment.detectron2_commands(folder, source) if wanted else []):
            print(" ".join(command))
        return 0
    done = environment.fetch(folder, python=python)
    print(f"{folder}: {'made' if done else 'is there, nothing to do'}")
    if wanted:
        done = environment.add_detectron2(folder, source)
        print(f"detectron2: {f'built from {source}' if done else 'is there, nothing to do'}")
    elif not environment.has_detectron2(folder):
        print(
            f"not in it: detectron2, which is not on PyPI; {', '.join(NEEDS_DETECTRON2)} need it built from "
            "source (https://github.com/facebookresearch/detectron2): --detectron2, with the folder of a "
            "checkout behind it where GitHub cannot be reached"
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
