"""``evalharness leaderboard merge``: runs of several people as one leaderboard."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from evalharness.cli.parsing import Parser
from evalharness.errors import UserError, unknown

if TYPE_CHECKING:
    from evalharness.api import Total
    from evalharness.registry import Registry
    from evalharness.result_schema import Results

__all__ = ["execute"]


def execute(arguments: list[str]) -> int:
    """Write results.json and all reports into a new folder; prints their paths."""
    parser = Parser(
        "leaderboard",
        "merge: join runs of several people into one leaderboard. Every row says which run it is "
        "from; runs of "
        "other recipes are refused.",
    )
    parser.add_argument("action", metavar="merge", help="the one action there is")
    parser.add_argument("runs", nargs="+", metavar="[NAME=]RUN", help="run folders or results.json files")
    parser.add_argument("--output", required=True, metavar="DIR", help="new or empty folder")
    parser.add_plugins()
    options = parser.parse_args(arguments)
    if options.action != "merge":
        raise unknown("action", options.action, ("merge",))

    from evalharness.console import Console
    from evalharness.merging import merge, read_part
    from evalharness.registry import Registry
    from evalharness.results import write_results
    from evalharness.runfolder import RunFolder
    from evalharness.stages.aggregate import write_reports

    output = Path(options.output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"--output {output}: not empty; choose a new folder")
    parts = [read_part(given) for given in options.runs]
    registry, console = Registry(options.plugin), Console()
    results = merge(parts, _totals(parts[0].results, registry))
    output.mkdir(parents=True, exist_ok=True)
    folder = RunFolder(output)
    write_results(results, folder.results)
    written, failed = write_reports(registry, console, folder, results)
    for path in (folder.results, *written):
        print(path)
    return 1 if failed else 0


def _totals(results: Results, registry: Registry) -> tuple[Total, ...]:
    """How the totals that the runs have are made; only the installed protocol knows that."""
    if not results.totals:
        return ()
    from evalharness.totals import totals_of

    return totals_of(registry.get("protocols", results.protocol)())
