"""``evalharness check``: a run held against a reference; the exit code says whether it passes."""

from __future__ import annotations

from pathlib import Path

from evalharness.cli.parsing import Parser

__all__ = ["execute"]


def execute(arguments: list[str]) -> int:
    """Print the verdicts; 0 PASS, 1 REGRESSION, 3 RECIPE_MISMATCH, 4 INCOMPLETE."""
    parser = Parser(
        "check",
        "Hold a run against a reference. Exit code 0: PASS, 1: REGRESSION, 2: a mistake in the command, "
        "3: RECIPE_MISMATCH (other prompts, settings or options), 4: INCOMPLETE (something is missing).",
    )
    parser.add_argument("run", metavar="RUN", help="run folder or results.json")
    parser.add_argument("--against", required=True, metavar="REFERENCE", help="one too; RUN:CELL for one row")
    parser.add_argument("--gates", default=None, metavar="FILE", help="YAML file (quality and size)")
    parser.add_argument(
        "--timings", default=None, metavar="FILE", help="times taken in turns, for gates on timings"
    )
    parser.add_argument("--junit", default=None, metavar="FILE", help="also write JUnit XML")
    parser.add_argument("--markdown", default=None, metavar="FILE", help="also write a Markdown summary")
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")
    options = parser.parse_args(arguments)

    from evalharness.compare.selection import read_side
    from evalharness.gates import formats
    from evalharness.gates.checking import check
    from evalharness.gates.spec import DEFAULT, read_gates
    from evalharness.gates.timings import read_timings
    from evalharness.store import atomic_write_text

    gates = DEFAULT if options.gates is None else read_gates(Path(options.gates))
    timings = None if options.timings is None else read_timings(Path(options.timings))
    report = check(read_side(options.run), read_side(options.against), gates, timings)
    if options.junit is not None:
        atomic_write_text(Path(options.junit), formats.junit(report))
    if options.markdown is not None:
        atomic_write_text(Path(options.markdown), formats.markdown(report))
    print(formats.to_json(report) if options.json else formats.text(report), end="")
    return report.status.exit_code
