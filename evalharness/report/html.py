"""``report.html``: one file that needs no network, with the tables, plots and videos of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from evalharness.result_schema import Results

__all__ = ["HtmlReporter"]

SHOWN_PROMPTS = 10


class HtmlReporter:
    """A self-contained page; text from outside is escaped, scripts from outside cannot run."""

    name = "html"
    summary = "report.html: tables, plots and videos in one self-contained file"

    def write(self, results: Results, run_folder: Path) -> list[Path]:
        """Write ``report.html``; videos are read from the run folder, a missing one is marked."""
        from evalharness.store import atomic_write_text

        path = run_folder / "report.html"
        atomic_write_text(path, render(results, run_folder))
        return [path]


def render(results: Results, run_folder: Path) -> str:
    """The text of the page."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    from evalharness.visible import seen

    loader = PackageLoader("evalharness.report")
    environment = Environment(
        loader=loader,
        autoescape=True,
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        finalize=seen,
    )
    environment.filters.update(code=_code, breakable=_breakable)
    return environment.get_template("report.html.j2").render(_context(results, run_folder))


def _context(results: Results, run_folder: Path) -> dict[str, Any]:
    from markupsafe import Markup

    from evalharness.ranking import ranking
    from evalharness.report.glance import glance
    from evalharness.report.html_tables import cell_table, pooled_table
    from evalharness.report.plots import plots
    from evalharness.report.published import published, published_table
    from evalharness.report.recipes import grouped, pretty, row_recipes
    from evalharness.report.summary import summary
    from evalharness.report.wording import coverage_line, legend, ranking_sentences, warnings

    several = len(results.seeds) > 1
    rankings = ranking(results)
    script = _asset("report.js") + _asset("browser.js")
    papers = published(results)
    return {
        "results": results,
        "style": Markup(_asset("report.css")),  # noqa: S704 - our own file
        "script": Markup(script),  # noqa: S704 - our own file
        "script_hash": _sha256_base64(script),
        "overview": _overview(results),
        "summary": summary(rankings, results),
        "warnings": warnings(results),
        "glance": glance(rankings, results),
        "ranking": ranking_sentences(rankings, results),
        "tables": [pooled_table(results)] * several + [cell_table(results, is_folded=several)],
        "plots": [plot._replace(svg=Markup(plot.svg)) for plot in plots(results)],  # noqa: S704 - drawn by us
        "legend": legend(results),
        "coverage": coverage_line(results),
        "is_partial": not all(cell.is_complete for cell in results.cells),
        "published": None if papers is None else published_table(papers, results),
        "recipes": grouped(row_recipes(results)),
        "manifest": pretty(dict(results.manifest)),
        **_video_context(results, run_folder),
    }


def _video_context(results: Results, run_folder: Path) -> dict[str, Any]:
    """What the browser of prompts works on, and the videos that lie inside the page."""
    from markupsafe import Markup

    from evalharness.report.browser import browser_data, inert_json
    from evalharness.report.selection import RULE, choose_prompts, shown_cells
    from evalharness.report.videos import embedded

    cells = shown_cells(results)
    chosen = choose_prompts(cells, results.dimensions, SHOWN_PROMPTS)
    clips = embedded(run_folder, cells, chosen)
    told = {
        "rule": RULE,
        "chosen": [[choice.prompt_id, choice.dimension] for choice in chosen] if clips else [],
        "inside": len(clips),
    }
    data = inert_json({**browser_data(results, run_folder), **told})
    return {"clips": clips, "browser": Markup(data)}  # noqa: S704 - see inert_json


def _overview(results: Results) -> str:
    models = ", ".join(sorted({cell.model for cell in results.cells}))
    videos = sum(cell.n_videos_ok for cell in results.cells)
    seeds = ", ".join(str(seed) for seed in results.seeds)
    return f"Model {models} · {len(results.cells)} cells · {videos} videos · seeds {seeds}"


def _asset(name: str) -> str:
    from importlib.resources import files

    return (files("evalharness.report") / "templates" / name).read_text(encoding="utf-8")


def _sha256_base64(text: str) -> str:
    import base64
    import hashlib

    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")


def _code(text: str) -> Any:
    """Escaped text with its `back-quoted` parts as code."""
    from markupsafe import Markup, escape

    parts = text.split("`")
    marked = [escape(p) if i % 2 == 0 else Markup("<code>{}</code>").format(p) for i, p in enumerate(parts)]
    return Markup().join(marked)


def _breakable(text: str) -> Any:
    """Escaped text that may break after an underscore."""
    from markupsafe import Markup, escape

    return Markup("_<wbr>").join(escape(part) for part in text.split("_"))
