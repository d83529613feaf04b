"""``evalharness score``: judge a run folder again, or any folder of videos."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from evalharness.cli.parsing import Parser
from evalharness.config import comma_list
from evalharness.errors import UserError
from evalharness.runfolder import RunFolder

if TYPE_CHECKING:
    from evalharness.config import RunConfig
    from evalharness.console import Console
    from evalharness.runner import Summary

__all__ = ["execute"]

_DESCRIPTION = (
    "Score a run folder again where a metric or a video changed; or, with --protocol, a folder of videos "
    "that anyone made, named as VBench does ({prompt}-{number}.mp4), by sample id, or listed in a manifest."
)


def execute(arguments: list[str]) -> int:
    """Score and write the reports; returns the exit code."""
    parser = Parser("score", _DESCRIPTION)
    parser.add_argument("folder", metavar="RUN|DIR", help="run folder, or folder of videos")
    parser.add_argument("--protocol", default=None, help="of a folder of videos: what they show, e.g. vbench")
    parser.add_argument(
        "--manifest", default=None, metavar="FILE", help="CSV or JSON: file, prompt_id, sample"
    )
    parser.add_argument(
        "--follow-links", action="store_true", help="of a manifest: files may be links out of the folder"
    )
    parser.add_argument(
        "--output", default=None, metavar="RUN", help="of a folder of videos: run folder to make"
    )
    parser.add_argument("--name", default=None, help="of a folder of videos: name of its row (the folder's)")
    parser.add_argument("--dimensions", default="", metavar="A,B", help="only these (all)")
    parser.add_argument(
        "--metric",
        action="append",
        default=[],
        metavar="NAME",
        help="judge a dimension by this: upstream.*",
    )
    parser.add_plugins()
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--workers", type=int, default=None, metavar="N", help="processes (cores)")
    parser.add_argument("--executor", default="local", help="who judges: local processes, torchrun or ray")
    options = parser.parse_args(arguments)
    folder = Path(options.folder)
    is_run = RunFolder(folder).is_run
    _check(options, folder, is_run)

    from evalharness.config import RunConfig
    from evalharness.console import Console

    config = RunConfig(
        protocol=options.protocol,
        dimensions=comma_list(options.dimensions),
        metric=options.metric,
        plugin=options.plugin,
        device=options.device,
        workers=options.workers,
        executor=options.executor,
        output=str(folder)
        if is_run
        else options.output or f"runs/{folder.resolve().name}-{options.protocol}",
    )

    def score() -> tuple[int, bool]:
        console = Console()
        summary = _rescore(config, console) if is_run else _given(folder, options, config, console)
        console.say(summary.line())
        print(f"results: {config.output}")
        return (1 if summary.failed else 0), summary.is_final

    if config.executor == "torchrun":
        from evalharness.executors import torchrun

        return torchrun.once(score)
    return score()[0]


def _check(options: argparse.Namespace, folder: Path, is_run: bool) -> None:
    for name in ("protocol", "manifest", "output", "name"):
        if is_run and getattr(options, name) is not None:
            raise UserError(f"--{name}: {folder} is a run folder; that option is for a folder of videos")
    if folder.is_file():
        wanted = "run folder" if options.protocol is None else "folder of videos"
        raise UserError(f"{folder} is a file, not a {wanted}")
    if not is_run and options.protocol is None:
        raise UserError(
            f"{folder} is not a run folder (it has no plan.json); for a folder of videos give --protocol, "
            "e.g. --protocol vbench"
        )


def _rescore(config: RunConfig, console: Console) -> Summary:
    from evalharness.registry import Registry
    from evalharness.rescore import rescore

    return rescore(RunFolder(Path(str(config.output))), config, Registry(config.plugin), console)


def _given(folder: Path, options: argparse.Namespace, config: RunConfig, console: Console) -> Summary:
    from evalharness.interchange.given import score_given
    from evalharness.registry import Registry

    manifest = None if options.manifest is None else Path(options.manifest)
    name = options.name or folder.resolve().name
    return score_given(
        folder,
        config,
        Registry(config.plugin),
        console,
        name=name,
        manifest=manifest,
        follow_links=options.follow_links,
    )
