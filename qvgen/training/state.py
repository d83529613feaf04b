"""A training that can be killed: its state in one file, from which the same steps follow.

``train_state.safetensors`` holds the parameters, both Adam moments, the sums of the log and torch's
random state as tensors, and step, log position and identity as JSON in the file's metadata. One
file, so that it is whole or absent; no pickle. Batches are drawn again and thrown away up to the
saved step: contexts promise the same ones at every call.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from qvgen.contents import check_contents
from qvgen.diverged import DivergedError
from qvgen.files import remove_leftovers
from qvgen.training.agreement import all_or_none, raise_first
from qvgen.training.background import Background
from qvgen.training.context import TrainContext, extras
from qvgen.training.host_moments import MOMENTS, HostMomentsAdamW, on_device
from qvgen.training.identity import differing
from qvgen.training.log import TrainLog
from qvgen.training.optim import resting_moments
from qvgen.training.parallel import agreed, assign_, rank, text_from_first, whole, world_size
from qvgen.training.recipe import TrainRecipe
from qvgen.training.state_file import Layout, StateFile, new_state, unreadable

STATE_NAME = "train_state.safetensors"
_Named = Iterator[tuple[str, Tensor]]
_SHARE_OF_TIME = 0.05  # of a training that timed saving may take: a large model's state is large


class TrainState:
    """Saves and restores one training; does nothing where the context has no ``state_folder``.

    A state does not depend on the number of processes: any number goes on from it.
    """

    def __init__(
        self,
        student: nn.Module,
        optimizer: torch.optim.Optimizer,
        log: TrainLog,
        recipe: TrainRecipe,
        identity: Mapping[str, Any],
        ctx: TrainContext,
    ) -> None:
        self._student, self._optimizer, self._log, self._recipe = student, optimizer, log, recipe
        self._ctx = ctx
        self._rewind = extras(ctx).rewind_log
        folder = extras(ctx).state_folder
        self.path = None if folder is None else folder / STATE_NAME
        self._identity = identity
        self._names = {id(p): n for n, p in student.named_parameters()}
        self._random: dict[str, Tensor] = {}
        self._saved_at = time.monotonic()
        self._saving_took = 0.0
        self._background = Background()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Wait for a state that is being written; its error is raised unless there is another one."""
        if kind is None:
            with all_or_none():
                self._background.wait()
        else:
            with contextlib.suppress(BaseException):
                self._background.wait()

    def restore(self) -> int:
        """Take over a saved state if there is one; returns the step to go on with, else 0.

        The first process reads; the others take what it sends.

        Raises:
            ValueError: the file is damaged, or of another model, recipe, schedule or seed.
            OSError: the system's.
        """
        if self.path is None:
            return 0
        file = None
        with all_or_none():
            if rank() == 0:
                remove_leftovers(self.path)
                file = self._examined()
                if self._rewind is not None:
                    self._rewind(file.header["log"]["lines"] if file else 0)
        mine = {} if file is None else {**file.header, "names": sorted(file.names)}
        header = json.loads(text_from_first(json.dumps(mine), self._ctx.device))
        if not header:
            return 0
        self._take(header, None if file is None else file.tensor)
        step: int = header["step"]
        return step

    def _examined(self) -> StateFile | None:
        """The saved state, once all of it has been looked at."""
        assert self.path is not None
        if not self.path.is_file():
            return None
        file = StateFile(self.path)
        self._refuse_foreign(file.header["identity"])
        self._check_tensors(file)
        return file

    @torch.no_grad()
    def _take(self, header: Mapping[str, Any], read: Callable[[str], Tensor] | None) -> None:
        """``read`` is None in processes that the first one sends all tensors to."""
        problems: list[Exception] = []  # until the end all go on: the others take what they expect

        def attempt(work: Callable[[], Tensor]) -> Tensor | None:
            try:
                return work()
            except Exception as error:
                if world_size() == 1:
                    raise
                problems.append(error)
                return None

        def fill(tensor: Tensor, name: str) -> Tensor:
            assign_(tensor, None if read is None else attempt(partial(read, name)))
            return tensor

        for name, tensor in _model_tensors(self._student).items():
            fill(tensor, f"model/{name}")
        optimizer = self._optimizer
        resting = resting_moments(optimizer)
        for parameter in self._trained():
            name = self._names[id(parameter)]
            if f"step/{name}" not in header["names"]:  # it had no gradient so far
                continue
            state = {key: fill(torch.zeros_like(parameter), f"{key}/{name}") for key in MOMENTS}
            if id(parameter) in resting:
                assert isinstance(optimizer, HostMomentsAdamW)
                for key, value in state.items():
                    rest = attempt(partial(optimizer.at_rest, value))
                    state[key] = value if rest is None else rest
            step = torch.zeros((), device=parameter.device)
            optimizer.state[parameter] = {"step": fill(step, f"step/{name}"), **state}
        fill(self._log.sums, "log/sums")
        self._log.restore(header["log"])
        now = _random_state(self._ctx.device)
        for kind in sorted(set(header["random"]) & set(now)):  # in one order on all ranks
            sent = fill(now[kind].to(self._ctx.device), f"random/{kind}")
            self._random[kind] = sent.cpu()
        raise_first(problems[0] if problems else None)

    def _check_tensors(self, file: StateFile) -> None:
        """Exactly the tensors that this training has, as they were written, and a step within it."""
        header = file.header
        if not 0 < header["step"] < self._recipe.steps:
            raise unreadable(self.path, f"step {header['step']} of {self._recipe.steps}")
        wanted = {f"model/{name}": tensor for name, tensor in _model_tensors(self._student).items()}
        for parameter in self._trained():
            name = self._names[id(parameter)]
            if any(f"{key}/{name}" in file.names for key in (*MOMENTS, "step")):
                wanted |= {f"{key}/{name}": parameter for key in MOMENTS}
                wanted[f"step/{name}"] = torch.zeros(())
        wanted["log/sums"] = self._log.sums
        now = _random_state(self._ctx.device)
        for kind in {"cpu", *header["random"]}:  # one of another kind of device is carried, not used
            name = f"random/{kind}"
            wanted[name] = now.get(kind, file.tensor(name) if name in file.names else now["cpu"])
        for name in sorted(wanted.keys() ^ file.names):
            raise unreadable(self.path, f"{name} is {'missing' if name in wanted else 'surplus'}")
        file.check(lambda name, found: self._check_tensor(name, wanted[name], found))

    def _check_tensor(self, name: str, wanted: Tensor, found: Tensor) -> None:
        if found.shape != wanted.shape:
            raise unreadable(self.path, f"{name} is {tuple(found.shape)}, not {tuple(wanted.shape)}")
        try:
            check_contents(name, found, wanted.dtype, finite=False)
        except ValueError as error:
            raise unreadable(self.path, str(error)) from None

    def batches(self, step: int) -> Iterator[Any]:
        """The context's batches from the optimiser step ``step`` on; then sets torch's random state."""
        with all_or_none():
            batches = self._ctx.batches(self._recipe.batch_size)
            for _ in itertools.islice(batches, step * self._recipe.accumulate):
                pass
        if "cpu" in self._random:
            torch.set_rng_state(self._random["cpu"])
        if "cuda" in self._random and self._ctx.device.type == "cuda":
            torch.cuda.set_rng_state(self._random["cuda"], self._ctx.device)
        return batches

    def save_if_due(self, step: int) -> None:
        """Save after ``step`` steps if the recipe's steps or seconds have passed; never at the end.

        Raises:
            OSError: the system's, of this state or of the one that was being written.
        """
        if self.path is None or step == self._recipe.steps:
            return
        if world_size() == 1 or self._log.is_due(step - 1):  # where all meet anyway
            with all_or_none():
                self._background.raise_error()
        every, seconds = self._recipe.save_every, self._recipe.save_every_s
        due = bool(every) and step % every == 0
        if not due and seconds and (world_size() == 1 or self._log.is_due(step - 1)):
            wait = max(seconds, self._saving_took / _SHARE_OF_TIME)
            passed = time.monotonic() - self._saved_at >= wait
            due = agreed(passed and not self._background.busy, self._ctx.device)
        if due:
            begun = time.monotonic()
            self.save(step)
            self._saved_at = time.monotonic()
            self._saving_took = self._saved_at - begun

    def save(self, step: int) -> None:
        """Write the state after ``step`` steps in place of an older one, whole or not at all.

        With ``recipe.save_async`` it is copied to the host now and written while the training goes on.

        Raises:
            DivergedError: the training diverged.
            OSError: the system's.
        """
        assert self.path is not None
        path = self.path
        if self._recipe.save_async:  # before there are two copies of a state
            with all_or_none():
                self._background.wait()
        random = _random_state(self._ctx.device)
        header = {
            "identity": self._identity,
            "step": step,
            "log": self._log.state(),
            "random": sorted(random),
        }
        header = json.loads(json.dumps(header))  # as it is now: the log goes on
        parts = self._parts(random)
        layout = {name: (value.dtype, tuple(like.shape)) for name, (like, value) in parts.items()}
        if not self._recipe.save_async:
            self._taken_by_first(self._gathered(parts, step), partial(_putting, path, header, layout))
            return
        copies: dict[str, Tensor] = {}

        def keep(name: str, value: Tensor) -> None:
            copies[name] = value.cpu() if value.device.type != "cpu" else value.clone()

        self._taken_by_first(self._gathered(parts, step), lambda: nullcontext(keep))

        def write() -> None:
            with new_state(path, header, layout) as writer:
                for name in sorted(copies):
                    writer.put(name, copies.pop(name))

        with all_or_none():
            if rank() == 0:
                self._background.start(write)

    def _taken_by_first(
        self, tensors: _Named, open_: Callable[[], AbstractContextManager[Callable[[str, Tensor], None]]]
    ) -> None:
        """The first process puts each tensor where ``open_`` leads as it comes."""
        with all_or_none(), contextlib.ExitStack() as stack:
            try:
                put = stack.enter_context(open_()) if rank() == 0 else None
                for name, value in tensors:
                    if put is not None:
                        put(name, value)
            finally:  # also after an error: the others are still sending
                deque(tensors, maxlen=0)

    @torch.no_grad()
    def _gathered(self, parts: Mapping[str, tuple[Tensor, Tensor]], step: int) -> _Named:
        """Name and whole value of each part, by name; every process must take all of them.

        Raises:
            DivergedError: at the end: such a state only leads to the same end, and must not take the
                place of an older one.
        """
        finite: dict[str, Tensor] = {}
        checked = {"log/sums", *(f"model/{name}" for name, _ in self._student.named_parameters())}
        for name in sorted(parts):
            value = whole(on_device(*parts[name]).detach())
            if name in checked:
                finite[name] = value.isfinite().all()
            yield name, value
        found = torch.stack([flag.to(self._ctx.device) for flag in finite.values()]).tolist()
        for name, fine in zip(finite, found, strict=True):
            if not fine:
                raise DivergedError(
                    f"training diverged: {name.removeprefix('model/')} holds NaN or infinity after {step} "
                    "steps; lower lr_scales or lr_weights, or train with precision fp32"
                )

    def _parts(self, random: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
        """All that is saved, by name: a tensor of its whole shape, and its value, which may be a shard."""
        parts = {f"model/{name}": (tensor, tensor) for name, tensor in _model_tensors(self._student).items()}
        for parameter in self._trained():
            for key, value in self._optimizer.state.get(parameter, {}).items():
                like = parameter if key in MOMENTS else value
                parts[f"{key}/{self._names[id(parameter)]}"] = (like, value)
        parts |= {f"random/{kind}": (value, value) for kind, value in random.items()}
        return {**parts, "log/sums": (self._log.sums, self._log.sums)}

    def _trained(self) -> list[nn.Parameter]:
        return [p for group in self._optimizer.param_groups for p in group["params"]]

    def _refuse_foreign(self, found: Mapping[str, Any]) -> None:
        key = differing(found, self._identity)
        if key is not None:
            raise ValueError(
                f"{self.path} is the state of another training: {key} was {found.get(key)!r}, is "
                f"{self._identity.get(key)!r}; delete the file to start anew"
            )


@contextmanager
def _putting(
    path: Path, header: Mapping[str, Any], layout: Layout
) -> Iterator[Callable[[str, Tensor], None]]:
    with new_state(path, header, layout) as writer:
        yield writer.put


def _model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters, each once, and the buffers that a checkpoint would hold."""
    kept = model.state_dict().keys()
    buffers = {name: buffer for name, buffer in model.named_buffers() if name in kept}
    return {**dict(model.named_parameters()), **buffers}


def _random_state(device: torch.device) -> dict[str, Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state
