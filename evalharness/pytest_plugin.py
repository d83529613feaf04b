"""``pytest --evalharness-check``: run a small benchmark and hold it against a stored reference.

The reference is a folder with ``results.json`` (of a run), ``run.yaml`` (the options that made it, as
``evalharness run --config`` takes them) and, if wanted, ``gates.yaml``. Each of its rows becomes a test,
so that ``-k``, ``--junitxml`` and ``-x`` work as ever. The run happens once, in a process of its own,
before the first of them. Loaded by pytest wherever evalharness is installed, so it imports nothing more
until the option is given.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from evalharness.gates.status import CheckReport

__all__ = ["pytest_addoption", "pytest_collection_modifyitems"]

_SECONDS_FOR_THE_RUN = 1800


def pytest_addoption(parser: pytest.Parser) -> None:
    """The options, in a group of their own."""
    group = parser.getgroup("evalharness", "regression check against a stored run")
    group.addoption("--evalharness-check", action="store_true", help="run the check besides other tests")
    group.addoption(
        "--evalharness-reference",
        default="results/ci",
        metavar="DIR",
        help="folder with results.json, run.yaml and gates.yaml (results/ci)",
    )
    group.addoption(
        "--evalharness-run",
        default=None,
        metavar="DIR",
        help="make the run there and keep it, to resume (a temporary folder)",
    )
    group.addoption(
        "--evalharness-markdown", default=None, metavar="FILE", help="also write the summary of the check"
    )


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(
    session: pytest.Session, config: pytest.Config, items: list[pytest.Item]
) -> None:
    """Add a test for each row of the reference; first, so that ``-k`` and ``-m`` see them."""
    if not config.getoption("--evalharness-check"):
        return
    from evalharness.compare.selection import read_side, rows_of
    from evalharness.errors import UserError

    once = _Check(config)
    try:
        rows = rows_of(read_side(str(once.reference)))
    except UserError as error:
        raise pytest.UsageError(f"--evalharness-check: {error}") from error
    if not once.recipe.is_file():
        raise pytest.UsageError(f"--evalharness-check: {once.recipe}: no such file; it says what to run")
    items += [
        RowItem.from_parent(session, name=f"evalharness_check[{r.name}]", row=r.name, once=once) for r in rows
    ]
    once.rows = frozenset(row.name for row in rows)


class _Check:
    """The run and its verdicts, made when first asked for."""

    def __init__(self, config: pytest.Config) -> None:
        self.reference = Path(str(config.getoption("--evalharness-reference")))
        self.recipe = self.reference / "run.yaml"
        self._kept = config.getoption("--evalharness-run")
        self._markdown = config.getoption("--evalharness-markdown")
        self.rows: frozenset[str] = frozenset()
        self._report: CheckReport | None = None
        self._failure = ""

    def report(self) -> CheckReport:
        if self._failure:
            pytest.fail(self._failure, pytrace=False)
        if self._report is None:
            with tempfile.TemporaryDirectory(prefix="evalharness-check-") as temporary:
                self._report = self._make(Path(self._kept or temporary))
        return self._report

    def _make(self, folder: Path) -> CheckReport:
        from evalharness.compare.selection import read_side
        from evalharness.gates import formats
        from evalharness.gates.checking import check
        from evalharness.gates.spec import DEFAULT, read_gates
        from evalharness.store import atomic_write_text

        command = [
            sys.executable,
            "-m",
            "evalharness",
            "run",
            "--config",
            str(self.recipe),
            "--output",
            str(folder),
        ]
        made = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=_SECONDS_FOR_THE_RUN
        )
        if made.returncode not in (0, 1):  # after 1 some videos are missing, which the check says
            self._failure = f"{' '.join(command[1:])} failed:\n{made.stderr[-2000:]}"
            pytest.fail(self._failure, pytrace=False)
        gates = self.reference / "gates.yaml"
        chosen = read_gates(gates) if gates.is_file() else DEFAULT
        report = check(read_side(str(folder)), read_side(str(self.reference)), chosen)
        if self._markdown:
            atomic_write_text(Path(self._markdown), formats.markdown(report))
        return report


class RowItem(pytest.Item):
    """One row of the reference: passes when all of its gates do."""

    def __init__(self, *, row: str, once: _Check, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._row, self._once = row, once
        if self.config.pluginmanager.hasplugin("timeout"):  # the run has a limit of its own
            self.add_marker(pytest.mark.timeout(_SECONDS_FOR_THE_RUN + 60))

    def runtest(self) -> None:
        from evalharness.gates.status import Status

        report = self._once.report()
        # What is judged of no row, as the recipe and times of hot paths, holds for all of them.
        found = [v for v in report.verdicts if v.row == self._row or v.row not in self._once.rows]
        bad = [v for v in found if v.status is not Status.PASS]
        if bad or not found:
            lines = [f"{v.status} {v.metric}: {v.reason}" for v in bad] or ["no gate judges this row"]
            pytest.fail("\n".join([f"{self._row} against {self._once.reference}:", *lines]), pytrace=False)

    def reportinfo(self) -> tuple[Path, int | None, str]:
        return self._once.reference, None, self.name
