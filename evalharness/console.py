"""What a person sees while a command works: lines and progress bars on standard error."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from evalharness.visible import visible

if TYPE_CHECKING:
    from tqdm import tqdm

    Bar = tqdm[Any]

__all__ = ["Console", "Progress"]


class Console:
    """Lines always; bars only on a terminal."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()

    def say(self, line: str) -> None:
        """One line, above any bar."""
        line = visible(line)
        if self._terminal:
            from tqdm import tqdm

            tqdm.write(line, file=sys.stderr)
        else:
            sys.stderr.write(line + "\n")
            sys.stderr.flush()

    def warn(self, line: str) -> None:
        self.say(f"warning: {line}")

    def progress(self, what: str, total: int, unit: str) -> Progress:
        """Announce work on ``total`` things; use as a context manager."""
        return Progress(self, what, total, unit, self._terminal)


class Progress:
    """A bar for a stage and, below it, one for each task that reports steps of its own."""

    def __init__(self, console: Console, what: str, total: int, unit: str, terminal: bool) -> None:
        self._console = console
        self._label = what
        self._text = f"{what}: {total} {unit}{'' if total == 1 else 's'}"
        self._start = time.monotonic()
        self._bars: dict[str, Bar] = {}
        self._bar: Bar | None = None
        if terminal:
            from tqdm import tqdm

            self._bar = tqdm(total=total, desc=what, unit=unit, file=sys.stderr, leave=False)
        else:
            console.say(self._text)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        for bar in [*self._bars.values(), *([self._bar] if self._bar is not None else [])]:
            bar.close()
        self._console.say(f"{self._text} ({time.monotonic() - self._start:.1f} s)")

    def advance(self) -> None:
        """One more is done."""
        if self._bar is not None:
            self._bar.update(1)

    def step(self, key: str, event: Mapping[str, Any]) -> None:
        """Show ``{"what", "done", "total"}`` of one running task."""
        if self._bar is None or "total" not in event:
            return
        name = f"{key} {event['what']}"
        bar = self._bars.get(name)
        if bar is None:
            from tqdm import tqdm

            bar = tqdm(total=event["total"], desc=f"  {name}", file=sys.stderr, leave=False)
            self._bars[name] = bar
        bar.update(event["done"] - bar.n)
        if event["done"] >= event["total"]:
            self._bars.pop(name).close()
