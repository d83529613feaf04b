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


# Seconds between two lines on how far a stage is, where there is no terminal: at first, and at most.
_FIRST_S, _LONGEST_S = 60.0, 600.0


class Console:
    """Lines always; bars only on a terminal, else a line now and then."""

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
        self._rates = {what: _Rate(total, unit, self._start)}
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
        else:
            rate = self._rates[self._label]
            self._tell(self._label, rate.done + 1)

    def step(self, key: str, event: Mapping[str, Any]) -> None:
        """Show ``{"what", "done", "total"}`` of one running task."""
        if "total" not in event:
            return
        name = f"{key} {event['what']}"
        if self._bar is None:
            rate = self._rates.get(name)
            if rate is None or event["done"] < rate.done:  # it is done anew
                rate = _Rate(int(event["total"]), "step", time.monotonic(), int(event["done"]))
                self._rates[name] = rate
            self._tell(name, int(event["done"]))
            if event["done"] >= event["total"]:
                self._rates.pop(name)
            return
        bar = self._bars.get(name)
        if bar is None:
            from tqdm import tqdm

            bar = tqdm(total=event["total"], desc=f"  {name}", file=sys.stderr, leave=False)
            self._bars[name] = bar
        bar.update(event["done"] - bar.n)
        if event["done"] >= event["total"]:
            self._bars.pop(name).close()

    def _tell(self, name: str, done: int) -> None:
        line = self._rates[name].line(done, time.monotonic())
        if line:
            self._console.say(f"  {name}: {line}")


class _Rate:
    """How fast things get done, for a line now and then.

    Args:
        total: of them.
        unit: what one is called.
        start: when they began, seconds.
        first: how many were done then.
    """

    def __init__(self, total: int, unit: str, start: float, first: int = 0) -> None:
        self.total, self.done = total, first
        self._unit, self._start, self._first = unit, start, first
        self._told, self._wait = start, _FIRST_S

    def line(self, done: int, now: float) -> str:
        """What to say of ``done`` at ``now``; empty if it is too early, or all is done."""
        self.done = done
        if now - self._told < self._wait or done >= self.total or done <= self._first:
            return ""
        self._told, self._wait = now, min(2 * self._wait, _LONGEST_S)
        a_second = (done - self._first) / (now - self._start)
        return (
            f"{done} of {self.total} {self._unit}s, {60 * a_second:.3g} a minute, about "
            f"{_duration((self.total - done) / a_second)} left"
        )


def _duration(seconds: float) -> str:
    """Two units at most: 50 s, 12 min, 3 h 20 min, 2 d 5 h."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"
