"""One piece of work at a time beside the training: writing its state."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Background:
    """Runs one call after the other in a thread of its own; errors come up where one next asks."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    @property
    def busy(self) -> bool:
        """Whether a call is still running."""
        return self._thread is not None and self._thread.is_alive()

    def start(self, work: Callable[[], None]) -> None:
        """Run ``work`` once the call before it is done.

        Raises:
            BaseException: that of the call before it; ``work`` is not begun then.
        """
        self.wait()

        def run() -> None:
            try:
                work()
            except BaseException as error:
                self._error = error

        # No daemon: a training that ends by an error must not cut it off.
        self._thread = threading.Thread(target=run, name="train-state")
        self._thread.start()

    def wait(self) -> None:
        """Until nothing is running.

        Raises:
            BaseException: that of the call that was running, once.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error

    def raise_error(self) -> None:
        """That of a call that has ended, if any."""
        if not self.busy:
            self.wait()
