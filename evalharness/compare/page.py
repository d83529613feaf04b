"""A comparison as one page that needs no network and runs no script."""

from __future__ import annotations

from evalharness.compare import text
from evalharness.compare.comparison import Comparison
from evalharness.effects import Effect
from evalharness.visible import seen

__all__ = ["page"]


def page(comparison: Comparison) -> str:
    """The text of the page; what comes from runs (names, prompts, options) is escaped."""
    from importlib.resources import files

    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    percent = comparison.percent

    def difference(effect: Effect) -> str:
        return text.difference_text(effect, percent)

    def value(number: float | None) -> str:
        return text.value_text(number, percent)

    def signed(number: float | None) -> str:
        return text.value_text(number, percent, signed=True)

    environment = Environment(
        loader=PackageLoader("evalharness.compare"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=seen,
    )
    environment.filters.update(
        change=text.change_text,
        seeds=text.seeds_text,
        p=text.p_text,
        difference=difference,
        value=value,
        signed=signed,
    )
    style = (files("evalharness.report") / "templates" / "report.css").read_text(encoding="utf-8")
    template = environment.get_template("compare.html.j2")
    trusted = Markup(style)  # noqa: S704 - our own file
    return template.render(c=comparison, notes=text.notes(comparison), style=trusted)
