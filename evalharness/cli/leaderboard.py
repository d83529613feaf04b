"""``evalharness leaderboard``: ``merge`` joins runs of several people; ``against``, one method beside all."""

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
    """``merge`` writes a new folder and prints its files; ``against`` prints a table."""
    parser = Parser(
        "leaderboard",
        "merge RUN RUN: join runs of several people into one leaderboard; every row says which run it is "
        "from; runs of other recipes are refused. against METHOD RUN: print how far all methods are from "
        "one, with paired intervals.",
    )
    parser.add_argument("action", metavar="merge|against")
    parser.add_argument(
        "given",
        nargs="+",
        metavar="[NAME=]RUN",
        help="run folders or results.json files; after a method's name",
    )
    parser.add_argument("--output", metavar="DIR", help="of merge: new or empty folder")
    parser.add_plugins()
    options = parser.parse_args(arguments)
    if options.action == "merge":
        if options.output is None:
            raise UserError("merge needs --output DIR, a new or empty folder")
        return _merge(options.given, Path(options.output), options.plugin)
    if options.action == "against":
        return _against(options.given, options.output)
    raise unknown("action", options.action, ("merge", "against"))


def _against(given: list[str], output: str | None) -> int:
    if len(given) != 2 or output is not None:
        raise UserError(
            "against takes a method and one run, and prints a table: leaderboard against METHOD RUN"
        )
    from evalharness.merging import read_part
    from evalharness.report.against import against

    method, run = given
    results = read_part(run).results
    try:
        print(against(results, method), end="")
    except ValueError as error:
        raise UserError(f"{run}: {error}") from error
    return 0


def _merge(runs: list[str], output: Path, plugins: list[str]) -> int:
    """Write results.json and all reports into a new folder; prints their paths."""
    from evalharness.console import Console
    from evalharness.merging import merge, read_part
    from evalharness.registry import Registry
    from evalharness.results import write_results
    from evalharness.runfolder import RunFolder
    from evalharness.stages.aggregate import write_reports

    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"--output {output}: not empty; choose a new folder")
    parts = [read_part(run) for run in runs]
    registry, console = Registry(plugins), Console()
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
