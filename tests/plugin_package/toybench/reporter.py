"""A toy reporter: the number of cells."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from toybench.hooks import reach


class Counter:
    name: ClassVar[str] = "counter"
    summary: ClassVar[str] = "the number of cells, as text"

    def write(self, results: Any, run_folder: Path) -> list[Path]:
        reach("aggregate/counter")
        path = run_folder / "counter.txt"
        path.write_text(f"{len(results.cells)}\n")
        return [path]
