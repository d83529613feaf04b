"""``evalharness report``: tables and pages again, from ``results.json`` alone."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

from evalharness.cli.parsing import Parser
from evalharness.config import comma_list
from evalharness.errors import UserError

if TYPE_CHECKING:
    from evalharness.results import Results
    from evalharness.runfolder import RunFolder

__all__ = ["execute"]


def execute(arguments: list[str]) -> int:
    """Write the reports; prints their paths."""
    parser = Parser("report", "Write the tables and the page of a run folder again, from its results.json.")
    parser.add_argument("run", metavar="RUN", help="run folder, or another with a results.json")
    parser.add_argument("--reporters", default="", metavar="A,B", help="only these (all)")
    parser.add_plugins()
    options = parser.parse_args(arguments)

    from evalharness.console import Console
    from evalharness.registry import Registry
    from evalharness.runfolder import RunFolder
    from evalharness.stages.aggregate import harness_sha256, write_reports

    registry = Registry(options.plugin)
    folder = RunFolder(Path(options.run))
    if not folder.results.is_file():
        raise UserError(f"{folder.root} has no results.json; evalharness run writes it at its end")
    names = comma_list(options.reporters)
    for name in names:
        registry.plugin("reporters", name)
    # joined runs and shipped results have no plan: nothing runs there that the lock would keep out
    with folder.lock() if folder.plan.exists() else contextlib.nullcontext():
        from evalharness.results import read_results

        try:
            results = read_results(folder.results)
        except ValueError as error:
            raise UserError(str(error)) from error
        _check_names(folder, results)
        console = Console()
        if results.manifest.get("code_sha256") != harness_sha256():
            console.warn(
                f"{folder.results} was made by other code of evalharness; its numbers are shown as they are, "
                f"to work them out again: evalharness score {folder.root}"
            )
        written, failed = write_reports(registry, console, folder, results, names)
    for path in written:
        print(path)
    return 1 if failed else 0


def _check_names(folder: RunFolder, results: Results) -> None:
    """Reporters build paths of videos from these."""
    from evalharness.names import check_name

    for name in [*(cell.id for cell in results.cells), *results.prompts]:
        check_name(name, f"{folder.results}: id")
