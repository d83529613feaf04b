"""What goes wrong in one of several processes: ``torchrun ... failing_training.py FOLDER``.

One after the other in the same process group, so that an error which left a process behind would spoil all
that follows. What each process was told is left in FOLDER/told-RANK.json.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, distributed, nn

from qvgen.config import QuantConfig
from qvgen.training import agreement, sharding, state_file
from qvgen.training.background import Background
from qvgen.training.recipe import TrainRecipe
from qvgen.training.run import quantize_and_train_
from tests.qvgen.parallel_training import Blocks, ParallelContext, Stopped

RECIPE: dict[str, Any] = {
    "steps": 6, "batch_size": 2, "accumulate": 2, "lr_weights": 2e-3, "log_every": 1, "save_every": 2,
    "validate_every": 3,
}  # fmt: skip
FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "there/x")
STATE = "train_state.safetensors"


class Failing(ParallelContext):
    """A context of which one member fails where it is told to."""

    fails: dict[str, Exception]

    def __init__(self, folder: Path, fails: dict[str, Exception] | None = None, stop_at: int | None = None):
        super().__init__(folder, stop_at)
        self.fails = fails or {}

    def _perhaps(self, name: str) -> None:
        if name in self.fails:
            raise self.fails[name]

    def teacher(self) -> nn.Module:
        self._perhaps("teacher")
        return super().teacher()

    def batches(self, batch_size: int) -> Iterator[Any]:
        for number, batch in enumerate(super().batches(batch_size)):
            if number == 3:
                self._perhaps("batches")
            yield batch

    def validation_batches(self, batch_size: int) -> Any:
        self._perhaps("validation_batches")
        return super().validation_batches(batch_size)

    def rewind_log(self, lines: int) -> None:
        self._perhaps("rewind_log")
        super().rewind_log(lines)


def train(
    ctx: ParallelContext,
    *,
    nan: bool = False,
    prepare: Callable[[nn.Module], None] | None = None,
    **changes: Any,
) -> None:
    torch.manual_seed(7)
    model = Blocks()
    if nan:
        with torch.no_grad():
            model.get_parameter("blocks.0.net.2.weight")[3, 4] = torch.nan
    recipe = TrainRecipe(**{**RECIPE, **changes})
    quantize_and_train_(model, QuantConfig(w_bits=4, a_bits=4), recipe, ctx, prepare)


def at(where: int, error: Exception) -> Exception | None:
    return error if distributed.get_rank() == where else None


def saved(folder: Path) -> Path:
    """A folder with a state after four steps."""
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(Stopped):
        train(Failing(folder, stop_at=9))
    distributed.barrier()
    assert (folder / "state" / STATE).is_file()
    return folder


def raises(error: Exception, after: int = 0) -> Callable[..., Any]:
    left = [after]

    def call(*_: Any, **__: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise error

    return call


def cases(root: Path) -> Iterator[tuple[str, Callable[[], None]]]:
    def member(name: str, where: int, error: Exception, **changes: Any) -> Callable[[], None]:
        failing = {name: error} if distributed.get_rank() == where else {}
        return lambda: train(Failing(root / "none", failing), save_every=0, **changes)

    def prepared(model: nn.Module) -> None:
        if distributed.get_rank() == 1:
            raise FULL

    def resumed(name: str, where: int, error: Exception) -> Callable[[], None]:
        def work() -> None:
            folder = saved(root / f"resume-{name}")
            train(Failing(folder, {name: error} if distributed.get_rank() == where else {}))

        return work

    def damaged() -> None:
        folder = saved(root / "damaged")
        if distributed.get_rank() == 0:
            path = folder / "state" / STATE
            path.write_bytes(path.read_bytes()[:-9])
        distributed.barrier()
        train(Failing(folder))

    def unreadable() -> None:
        """The disk fails once all of the state has been looked at."""
        folder = saved(root / "unreadable")
        real, after = state_file.StateFile.tensor, [0]

        def tensor(self: Any, name: str) -> Tensor:
            after[0] += 1
            if after[0] > len(self.names) + 3:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return real(self, name)

        with mock.patch.object(state_file.StateFile, "tensor", tensor):
            train(Failing(folder))

    def saving(name: str, error: Exception, **changes: Any) -> Callable[[], None]:
        def work() -> None:
            (root / name).mkdir(exist_ok=True)
            with mock.patch.object(state_file.StateWriter, "put", raises(error, 3)):
                train(Failing(root / name), **changes)

        return work

    def no_thread() -> None:
        (root / "thread").mkdir(exist_ok=True)
        with mock.patch.object(Background, "start", raises(RuntimeError("can't start new thread"))):
            train(Failing(root / "thread"), save_async=True)

    def crowded() -> None:
        error = torch.OutOfMemoryError("CUDA out of memory")
        fails = raises(error, 2) if distributed.get_rank() == 1 else sharding._shard_unit
        with mock.patch.object(sharding, "_shard_unit", fails):
            train(Failing(root / "none"), save_every=0)

    def both() -> None:
        error = ValueError(f"of rank {distributed.get_rank()}")
        train(Failing(root / "none", {"teacher": error}), save_every=0)

    yield "nan", lambda: train(Failing(root / "none"), nan=True, save_every=0)
    yield "prepare", lambda: train(Failing(root / "none"), prepare=prepared, save_every=0)
    yield "teacher", member("teacher", 1, FileNotFoundError(errno.ENOENT, "No such file", "part-2"))
    yield "validation", member("validation_batches", 0, KeyError("clips"))
    yield "both", both
    yield "memory", crowded
    yield "batches", resumed("batches", 1, ValueError("shard 3 is missing"))
    yield "rewind", resumed("rewind_log", 0, FULL)
    yield "damaged", damaged
    yield "unreadable", unreadable
    yield "save", saving("save", FULL)
    yield "save, no disk's error", saving("save2", RuntimeError("bad tensor"))
    yield "save in the background", saving("save3", FULL, save_async=True)
    yield "saved long ago", saving("save4", FULL, save_async=True, save_every=20, steps=30)
    yield "no thread", no_thread
    yield "log", lambda: train(Failing(root / "none"), save_every=0)  # there is no such folder
    (root / "well").mkdir(exist_ok=True)
    yield "nothing", lambda: train(Failing(root / "well"), save_every=0)


def main(root: Path) -> None:
    distributed.init_process_group("gloo", timeout=timedelta(minutes=10))
    told = {}
    try:
        for name, work in cases(root):
            try:
                work()
                found = [None, None]
            except Exception as error:
                found = [next(k for k, c in [*agreement._KINDS.items(), ("other", Exception)]
                              if isinstance(error, c)), str(error)]  # fmt: skip
            told[name] = found
    finally:
        (root / f"told-{distributed.get_rank()}.json").write_text(json.dumps(told))
        distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
