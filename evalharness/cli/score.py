"""``evalharness score``: judge the videos of a run folder again where a metric or a video changed."""

from __future__ import annotations

from pathlib import Path

from evalharness.cli.parsing import Parser
from evalharness.config import comma_list

__all__ = ["execute"]


def execute(arguments: list[str]) -> int:
    """Score and write the reports; returns the exit code."""
    parser = Parser("score", "Score the videos of a run folder again where a metric or a video changed.")
    parser.add_argument("run", metavar="RUN", help="run folder")
    parser.add_argument("--dimensions", default="", metavar="A,B", help="only these (all)")
    parser.add_plugins()
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--workers", type=int, default=None, metavar="N", help="processes (cores)")
    options = parser.parse_args(arguments)

    from evalharness.config import RunConfig
    from evalharness.console import Console
    from evalharness.registry import Registry
    from evalharness.rescore import rescore
    from evalharness.runfolder import RunFolder

    config = RunConfig(
        dimensions=comma_list(options.dimensions),
        plugin=options.plugin,
        device=options.device,
        workers=options.workers,
        output=options.run,
    )
    console = Console()
    summary = rescore(RunFolder(Path(options.run)), config, Registry(options.plugin), console)
    console.say(summary.line())
    print(f"results: {options.run}")
    return 1 if summary.failed else 0
