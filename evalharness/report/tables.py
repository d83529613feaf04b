"""``scores.csv``, ``leaderboard.csv``, ``leaderboard.md`` and ``leaderboard.tex``: the same rows each."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from evalharness.visible import visible

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from evalharness.report.rows import Value
    from evalharness.result_schema import CellResult, PooledResult, Results

__all__ = ["CsvReporter", "LatexReporter", "MarkdownReporter"]


PEERS_NOTE = (
    "Times of other libraries' forms of the same full-precision transformer, the same linears changed, each "
    "in turns with it. They were timed, not scored."
)


class CsvReporter:
    """Every score in long form, and one row a cell with intervals."""

    name = "csv"
    summary = "scores.csv (every score, raw) and leaderboard.csv (one row a cell)"

    def write(self, results: Results, run_folder: Path) -> list[Path]:
        """Write both files; numbers have a fixed number of decimals, an absent one is empty."""
        from evalharness.report.rows import leaderboard_columns, leaderboard_rows, score_columns, score_rows
        from evalharness.store import atomic_write_pieces

        scores = run_folder / "scores.csv"
        atomic_write_pieces(scores, _csv(score_rows(results), score_columns(), decimals=6))
        leaderboard = run_folder / "leaderboard.csv"
        columns = leaderboard_columns(results)
        rows = ([row[name] for name in columns] for row in leaderboard_rows(results))
        atomic_write_pieces(leaderboard, _csv(rows, columns, decimals=4))
        return [scores, leaderboard]


class MarkdownReporter:
    """The leaderboard for people: what it is, the ranking in words, all cells with intervals."""

    name = "markdown"
    summary = "leaderboard.md"

    def write(self, results: Results, run_folder: Path) -> list[Path]:
        """Write ``leaderboard.md``."""
        from evalharness.store import atomic_write_text

        path = run_folder / "leaderboard.md"
        atomic_write_text(path, visible(markdown(results)))
        return [path]


class LatexReporter:
    """The leaderboard as a LaTeX table, for ``input``."""

    name = "latex"
    summary = "leaderboard.tex: a booktabs table, all seeds together"

    def write(self, results: Results, run_folder: Path) -> list[Path]:
        """Write ``leaderboard.tex``."""
        from evalharness.report.latex import latex
        from evalharness.store import atomic_write_text

        path = run_folder / "leaderboard.tex"
        atomic_write_text(path, latex(results))
        return [path]


def _csv(rows: Iterable[Sequence[Value]], columns: Sequence[str], *, decimals: int) -> Iterator[str]:
    """Lines in pieces; floats with that many decimals, nothing for None."""
    import csv
    import io

    shape = f"%.{decimals}f"
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(columns)
    for number, row in enumerate(rows, 1):
        writer.writerow([shape % value if isinstance(value, float) else value for value in row])
        if number % 4096 == 0:
            yield buffer.getvalue()
            buffer.seek(0)
            buffer.truncate()
    yield buffer.getvalue()


def markdown(results: Results) -> str:
    """The text of ``leaderboard.md``."""
    from evalharness.ranking import ranking
    from evalharness.report.published import published, published_markdown, published_table
    from evalharness.report.rows import sorted_cells
    from evalharness.report.wording import legend, ranking_sentences, warnings

    parts = [f"# Leaderboard: {visible(results.protocol, one_line=True)}"]
    parts += [f"**{visible(results.label, one_line=True)}**"]
    parts += [f"> {line}" for line in ["  \n> ".join(warnings(results))] if line]
    if len(results.seeds) > 1:
        parts += [f"## All seeds together ({len(results.seeds)} seeds)", _pooled_table(results)]
    sentences = ranking_sentences(ranking(results), results)
    if sentences:
        parts += ["## Ranking", _bullets(sentences)]
    cells = sorted_cells(results)
    parts += ["## Cells", _cell_table(cells, results)]
    parts += ["## Dimensions", _dimension_table(cells, results)]
    if peers := peer_rows(results):
        parts += [
            "## Other libraries",
            PEERS_NOTE,
            table(list(peers[0]), [list(row.values()) for row in peers]),
        ]
    found = published(results)
    if found is not None and found.is_comparable:
        parts += ["## Published numbers", published_table(found, results).note]
        parts += [table(*published_markdown(found, results))]
    parts += ["## How to read this", _bullets(legend(results))]
    return _plain("\n\n".join(parts) + "\n")


def peer_rows(results: Results) -> list[dict[str, str]]:
    """Texts of the table of other libraries' transformers, in the order they were measured; by column."""
    from evalharness.report.rows import number

    rows = []
    for cell in results.cells:
        found = (cell.profile.model_extra or {}).get("peers", {}) if cell.profile else {}
        for name, peer in found.items():
            sizes = {key: number(peer.get(key), 2) for key in ("step_ms", "step_speedup", "executed_mb")}
            version, why = str(peer.get("library") or "-"), str(peer.get("absent", ""))
            rows.append(
                {"peer": name, "what": str(peer["summary"]), "version": version, **sizes, "why not": why}
            )
    return rows


def _bullets(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _pooled_table(results: Results) -> str:
    from evalharness.report.rows import AGAINST_REFERENCE, sorted_pooled, total_columns

    headers = ["method", "bits", "source", "execution", *total_columns(results), "mean"]
    headers += [AGAINST_REFERENCE, "mean of each seed"]
    return table(headers, [_pooled_row(row, results) for row in sorted_pooled(results)])


def _pooled_row(row: PooledResult, results: Results) -> list[str]:
    from evalharness.report.rows import bits_label, estimate_text, seed_means_text

    return [
        row.method,
        bits_label(row.w_bits, row.a_bits),
        ", ".join(row.sources),
        ", ".join(row.executions),
        *(estimate_text(row.totals.get(name), results) for name in results.totals),
        estimate_text(row.mean, results),
        estimate_text(row.minus_reference, results, signed=True),
        seed_means_text(row, results),
    ]


def _cell_table(cells: Sequence[CellResult], results: Results) -> str:
    from evalharness.report.rows import (
        AGAINST_REFERENCE,
        bits_label,
        cost,
        cost_columns,
        coverage_text,
        estimate_text,
        minus_reference,
        number,
        total_columns,
    )

    headers = ["method", "bits", "seed", "source", "execution", "coverage", *total_columns(results)]
    columns = cost_columns(results)
    headers += ["mean", AGAINST_REFERENCE, *columns, "train_minutes"]
    differences = minus_reference(results)
    rows = [
        [
            cell.method,
            bits_label(cell.w_bits, cell.a_bits),
            str(cell.seed),
            cell.source,
            cell.execution,
            coverage_text(cell.coverage),
            *(estimate_text(cell.totals.get(name), results) for name in results.totals),
            estimate_text(cell.mean, results),
            estimate_text(differences.get(cell.id), results, signed=True),
            *(number(cost(cell, column), 2) for column in columns),
            number(cell.train_minutes, 1),
        ]
        for cell in cells
    ]
    return table(headers, rows)


def _dimension_table(cells: Sequence[CellResult], results: Results) -> str:
    from evalharness.report.rows import bits_label, dimension_text

    headers = ["method", "bits", "seed", *results.dimensions]
    rows = [
        [
            cell.method,
            bits_label(cell.w_bits, cell.a_bits),
            str(cell.seed),
            *(dimension_text(cell.dimensions[name], results) for name in results.dimensions),
        ]
        for cell in cells
    ]
    return table(headers, rows)


def table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    from tabulate import tabulate

    escaped = [[visible(text, one_line=True).replace("|", "\\|") for text in row] for row in [headers, *rows]]
    return _plain(tabulate(escaped[1:], headers=escaped[0], tablefmt="github", disable_numparse=True))


def _plain(text: str) -> str:
    """Without what begins a tag, a comment or a link: Markdown passes HTML on."""
    return re.sub("<(?=[A-Za-z/!?])", "&lt;", text)
