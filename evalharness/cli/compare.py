"""``evalharness compare``: two runs or two cells, with intervals, p-values, winners and losers."""

from __future__ import annotations

from pathlib import Path

from evalharness.cli.parsing import Parser
from evalharness.errors import UserError

__all__ = ["execute"]

_FORMATS = ("text", "json", "html")


def execute(arguments: list[str]) -> int:
    """Print or write the comparison; exit code 0 whatever the two differ in."""
    parser = Parser(
        "compare",
        "Compare two runs, or two cells as RUN:CELL (lsq-w3a3 for all seeds, lsq-w3a3-s0 for one). A cell "
        "named on one side only is looked up in the other. Reads results.json alone.",
    )
    parser.add_argument("a", metavar="A", help="run folder or results.json, with :CELL or without")
    parser.add_argument("b", metavar="B", help="what A is compared with")
    parser.add_argument("--format", default="text", metavar="F", help=f"{', '.join(_FORMATS)} (text)")
    parser.add_argument("--output", default=None, metavar="FILE", help="write there instead of printing")
    parser.add_argument("--prompts", type=int, default=5, metavar="N", help="winners and losers to name (5)")
    options = parser.parse_args(arguments)
    if options.format not in _FORMATS:
        raise UserError(f"--format {options.format}: expected one of {', '.join(_FORMATS)}")
    if options.prompts < 0:
        raise UserError(f"--prompts {options.prompts}: expected a whole number from 0")

    from evalharness.compare.comparison import compare
    from evalharness.compare.selection import read_side

    found = compare(read_side(options.a), read_side(options.b), shown=options.prompts)
    if options.format == "html":
        from evalharness.compare.page import page

        shown = page(found)
    else:
        from evalharness.compare.text import text, to_json

        shown = to_json(found) + "\n" if options.format == "json" else text(found)
    if options.output is None:
        print(shown, end="")
        return 0
    from evalharness.store import atomic_write_text
    from evalharness.visible import visible

    atomic_write_text(Path(options.output), visible(shown))
    print(options.output)
    return 0
