"""``evalharness export``: the videos and scores of a run in the form of another benchmark."""

from __future__ import annotations

from pathlib import Path

from evalharness.cli.parsing import Parser
from evalharness.config import comma_list
from evalharness.errors import UserError

__all__ = ["execute"]


def execute(arguments: list[str]) -> int:
    """Export and say what was left out; exit code 0."""
    parser = Parser("export", "Show the videos of a run folder under VBench's names, with its result files.")
    parser.add_argument("run", metavar="RUN", help="run folder; it is not changed")
    parser.add_argument("--vbench", action="store_true", help="the form; the only one so far")
    parser.add_argument("--out", required=True, metavar="DIR", help="where to; one folder a cell")
    parser.add_argument("--cells", default="", metavar="A,B", help="only these (all)")
    parser.add_argument("--copy", action="store_true", help="copy the videos instead of linking to them")
    parser.add_plugins()
    options = parser.parse_args(arguments)
    if not options.vbench:
        raise UserError("evalharness export: say in which form, with --vbench")

    from evalharness.console import Console
    from evalharness.interchange.export import export_vbench
    from evalharness.registry import Registry
    from evalharness.runfolder import RunFolder

    console = Console()
    done = export_vbench(
        RunFolder(Path(options.run)),
        Path(options.out),
        Registry(options.plugin),
        cells=comma_list(options.cells),
        copy=options.copy,
    )
    for exported in done:
        for note in exported.notes:
            console.warn(f"{exported.folder.name}: {note}")
        print(f"{exported.folder}: {exported.videos} videos")
    return 0
