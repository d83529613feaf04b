"""The worker's side: ``python -m evalharness.worker`` reads tasks as JSON lines and answers each.

Standard output carries answers only; whatever libraries print goes to standard error.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import queue
import sys
import threading
from collections.abc import Callable, Mapping
from typing import Any, TextIO

from evalharness.executor import WorkerSpec, failed_reply
from evalharness.session import Session

__all__ = ["TaskRunner", "main"]

# Kind of task -> module with ``work(session, payload) -> dict``.
_HANDLERS = {
    "prepare": "evalharness.stages.prepare",
    "generate": "evalharness.stages.generate",
    "score": "evalharness.stages.score",
    "profile": "evalharness.stages.profile",
}


class TaskRunner:
    """Runs tasks on one session and turns every exception into an answer."""

    def __init__(self, spec: WorkerSpec) -> None:
        self._session = Session(spec)

    def check(self, kind: str) -> None:
        """Whether this machine has what tasks of a kind need: the run's weights, but where they only judge.

        Raises:
            UserError: it lacks something; says what to do.
        """
        if kind != "score":
            self._session.check_model()

    def run(
        self, kind: str, payload: Mapping[str, Any], emit: Callable[[Mapping[str, Any]], None]
    ) -> dict[str, Any]:
        """``{"value": ...}``, or ``{"failure", "error", "traceback"}``."""
        self._session.emit = emit
        try:
            work = importlib.import_module(_HANDLERS[kind]).work
            return {"value": work(self._session, payload)}
        except Exception as error:
            return failed_reply(error)


def main() -> None:
    """Serve until the input ends."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    inbox: queue.Queue[str] = queue.Queue()
    threading.Thread(target=_listen, args=(inbox,), daemon=True).start()
    spec = json.loads(inbox.get())["spec"]
    runner = TaskRunner(WorkerSpec.from_json(spec))
    while True:
        message = json.loads(inbox.get())
        answer = runner.run(
            message["kind"], message["payload"], lambda event: _send(answers, {"event": dict(event)})
        )
        _send(answers, answer)


def _listen(inbox: queue.Queue[str]) -> None:
    """Pass lines on; when the parent is gone, end at once, whatever the main thread is doing."""
    for line in sys.stdin:
        inbox.put(line)
    os._exit(0)


def _send(answers: TextIO, message: Mapping[str, Any]) -> None:
    with contextlib.suppress(BrokenPipeError):
        answers.write(json.dumps(message) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
