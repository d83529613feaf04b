"""One optimiser step, run as it is or recorded once as a CUDA graph and replayed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from qvgen.training.context import TrainContext
from qvgen.training.parallel import mean_over_processes, whole
from qvgen.training.recipe import TrainRecipe

WARMUP_STEPS = 3
_RECORDING = threading.Lock()  # one at a time in a process


class Losses(NamedTuple):
    """Detached loss and total gradient norm before clipping, of all processes."""

    loss: Tensor
    grad_norm: Tensor

    def finite(self) -> bool:
        """Whether both are; a wait for the device."""
        return bool(torch.stack(tuple(self)).isfinite().all())


class FixedBatch(NamedTuple):
    """A ``TrainBatch`` whose tensors keep their addresses."""

    inputs: dict[str, Any]
    target: Tensor


class TrainStep:
    """Forward of teacher and student, backward, clipping, optimiser; call it with its batches.

    With ``recipe.skip_bad_steps`` the optimiser does nothing where loss or gradient is not finite.

    Gradients, clipped, are left where they are until the next call.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | None,
        optimizer: torch.optim.Optimizer,
        recipe: TrainRecipe,
        ctx: TrainContext,
    ) -> None:
        self.student, self.teacher = student, teacher
        self.optimizer, self.recipe, self.ctx = optimizer, recipe, ctx
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]

    def __call__(self, batches: Sequence[Any]) -> Losses:
        """One optimiser step on the mean gradient of ``batches``."""
        self.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self.parameters[0].device)
        for batch in batches:
            if self.recipe.compile in ("default", "reduce-overhead"):
                torch.compiler.cudagraph_mark_step_begin()
            loss = training_loss(self.student, self.teacher, batch, self.recipe, self.ctx) / len(batches)
            loss.backward()
            total += loss.detach()
        grad_norm = nn.utils.clip_grad_norm_(self.parameters, self.recipe.grad_clip)
        losses = Losses(mean_over_processes(total), whole(grad_norm))
        if not self.recipe.skip_bad_steps or losses.finite():
            self.optimizer.step()
        return losses


def training_loss(
    student: nn.Module, teacher: nn.Module | None, batch: Any, recipe: TrainRecipe, ctx: TrainContext
) -> Tensor:
    """Mean squared error to the teacher's output, to the model's own target, or their weighted sum."""
    with _precision(ctx.device, recipe):
        copied = None
        if teacher is not None:
            with torch.no_grad():
                copied = ctx.predict(teacher, batch)
        prediction = ctx.predict(student, batch).float()
    if copied is None:
        return functional.mse_loss(prediction, batch.target.float())
    loss = functional.mse_loss(prediction, copied.float())
    if recipe.loss == "distill+task":
        loss = loss + recipe.task_weight * functional.mse_loss(prediction, batch.target.float())
    return loss


@contextmanager
def _precision(device: torch.device, recipe: TrainRecipe) -> Iterator[None]:
    # A graph would go on reading the first step's cast weights: no cache of them.
    graph, bf16 = recipe.compile == "graph", recipe.precision == "bf16"
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16, cache_enabled=not graph):
        yield


class GraphedStep:
    """``TrainStep`` as one CUDA graph: one launch a step instead of thousands.

    A small model on a large GPU spends its time starting kernels. The first ``WARMUP_STEPS`` steps
    run as they are, on a side stream as recording demands; then the step is recorded. Batches are
    copied to where the recorded one lay. What changes between steps outside of the batch must be
    changed in place: learning rates are tensors (``build_optimizer``), gamma, L and R buffers.
    """

    def __init__(self, step: TrainStep) -> None:
        self._step = step
        self._stream = torch.cuda.Stream(step.ctx.device)
        self._calls = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._batches: list[FixedBatch]
        self._losses: Losses

    def __call__(self, batches: Sequence[Any]) -> Losses:
        """As ``TrainStep``; the result is overwritten by the next call."""
        if self._calls < WARMUP_STEPS:
            self._calls += 1
            return self._warm_up(batches)
        if self._graph is None:
            self._record(batches)
        for batch, fixed in zip(batches, self._batches, strict=True):
            _copy(batch, fixed)
        assert self._graph is not None
        with _RECORDING:  # no thread may replay while another one records
            self._graph.replay()
        return self._losses

    def _warm_up(self, batches: Sequence[Any]) -> Losses:
        current = torch.cuda.current_stream(self._step.ctx.device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            losses = self._step(batches)
        current.wait_stream(self._stream)
        return losses

    def _record(self, batches: Sequence[Any]) -> None:
        """Recording runs nothing, so weights and moments stay as they are."""
        self._batches = [_fixed(batch) for batch in batches]
        self._graph = torch.cuda.CUDAGraph()
        # Other threads may go on meanwhile, up to their next replay.
        with (
            _RECORDING,
            torch.cuda.graph(self._graph, stream=self._stream, capture_error_mode="thread_local"),
        ):
            self._losses = self._step(self._batches)


@torch.no_grad()
def _copy(batch: Any, fixed: FixedBatch) -> None:
    for name, value in fixed.inputs.items():
        if isinstance(value, Tensor):
            _copy_tensor(name, batch.inputs[name], value)
        elif batch.inputs[name] != value:
            raise ValueError(
                f"compile: graph repeats what it recorded, but {name} changed from {value!r} to "
                f"{batch.inputs[name]!r}; use compile: off"
            )
    _copy_tensor("target", batch.target, fixed.target)


def _copy_tensor(name: str, given: Tensor, value: Tensor) -> None:
    if given.shape != value.shape:
        raise ValueError(
            f"compile: graph needs batches of one shape, but {name} changed from "
            f"{tuple(value.shape)} to {tuple(given.shape)}; use compile: off"
        )
    value.copy_(given)


def _fixed(batch: Any) -> FixedBatch:
    """Copies of the tensors of ``batch``, which later batches are copied into."""
    for name, value in batch.inputs.items():
        if isinstance(value, list | tuple | dict):
            raise ValueError(
                f"compile: graph copies tensors and keeps plain values, but {name} is a "
                f"{type(value).__name__}; use compile: off"
            )
    inputs = {k: v.clone() if isinstance(v, Tensor) else v for k, v in batch.inputs.items()}
    return FixedBatch(inputs, batch.target.clone())


def build_step(
    student: nn.Module,
    teacher: nn.Module | None,
    optimizer: torch.optim.Optimizer,
    recipe: TrainRecipe,
    ctx: TrainContext,
) -> Callable[[Sequence[Any]], Losses]:
    """The step that ``recipe.compile`` asks for.

    Raises:
        ValueError: ``graph`` without a CUDA device.
    """
    if recipe.compile == "graph":
        if ctx.device.type != "cuda":
            raise ValueError(f"compile: graph needs a CUDA device, this is {ctx.device}; use off or default")
        return GraphedStep(TrainStep(student, teacher, optimizer, recipe, ctx))
    teacher = None if teacher is None else _compiled(teacher, recipe)
    return TrainStep(_compiled(student, recipe), teacher, optimizer, recipe, ctx)


def _compiled(model: nn.Module, recipe: TrainRecipe) -> nn.Module:
    if recipe.compile == "off":
        return model
    mode = None if recipe.compile == "default" else recipe.compile
    return torch.compile(model, mode=mode, dynamic=False)  # type: ignore[return-value]
