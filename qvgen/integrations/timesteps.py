"""Modulation that depends on the timestep alone, computed once for each timestep of a schedule.

CogVideoX's adaLN linears and Wan's time projection read an embedding of the timestep. For a schedule
that is known they become a table; each call looks its timestep up on the device, without waiting for
it, so that CUDA graphs record the look-up. A timestep that is not in the table gives NaN, never the
numbers of another one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from diffusers import CogVideoXTransformer3DModel, WanTransformer3DModel
from torch import Tensor, nn

CONTEXT = "timestep_table"


class TimestepContext:
    """The timesteps of the tables of one model, and where the running call's are among them."""

    def __init__(self, timesteps: Tensor) -> None:
        self.timesteps = timesteps
        self.row = torch.zeros(1, dtype=torch.long, device=timesteps.device)

    def look_up(self, timestep: Tensor) -> None:
        """Take the timesteps [B] of a call; the row behind the last is that of unknown ones."""
        alike = timestep.reshape(-1, 1).to(self.timesteps) == self.timesteps
        unknown = torch.full_like(alike[:, 0], len(self.timesteps), dtype=torch.long)
        self.row = torch.where(alike.any(1), alike.int().argmax(1), unknown)


class Tabled(nn.Module):
    """A linear whose outputs are known: ``table`` [timesteps + 1, N], the last row NaN.

    It stands where ``inner`` stood and keeps it, for ``cache_timesteps_(model, None)``.
    """

    table: Tensor

    def __init__(self, inner: nn.Module, table: Tensor, context: TimestepContext) -> None:
        super().__init__()
        self.inner = inner
        self.context = context
        nothing = torch.full_like(table[:1], torch.nan)
        self.register_buffer("table", torch.cat([table, nothing]), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """[..., N] for x [B, ..., K], whose values are not looked at."""
        rows = self.table[self.context.row]
        return rows.view(-1, *(1,) * (x.dim() - 2), rows.shape[-1]).expand(*x.shape[:-1], -1).to(x.dtype)


@torch.no_grad()
def cache_timesteps_(model: nn.Module, timesteps: Tensor | None) -> nn.Module:
    """Replace what depends on the timestep alone by tables, in place; None puts the linears back.

    Numbers are those of a call with one sample at the dtype of the model. Call it again for another
    schedule, and after moving or casting the model.

    Args:
        model: CogVideoX's or Wan's transformer.
        timesteps: all that will be asked for, [T], as the pipeline passes them; distinct.

    Returns:
        The same ``model``.

    Raises:
        ValueError: another model, one whose modulation depends on more than the timestep, or timesteps that
            repeat or are none.
    """
    _restore_(model)
    if timesteps is None:
        return model
    if timesteps.dim() != 1 or not len(timesteps) or len(timesteps.unique()) < len(timesteps):
        raise ValueError(
            f"timesteps are {tuple(timesteps.shape)}; expected distinct ones, [T] with T at least 1"
        )
    embed, places = _parts(model)
    device = next(model.parameters()).device
    timesteps = timesteps.to(device)
    context = TimestepContext(timesteps)
    clips: Any = getattr(model, "clip_context", None)  # linears may clip by timestep
    linears = dict(places)
    rows: dict[str, list[Tensor]] = {name: [] for name in linears}
    for one in timesteps:
        if clips is not None:
            clips.set_timestep(one)
        x = embed(one[None])
        for name, linear in linears.items():
            rows[name].append(linear(x).reshape(1, -1))
    for name, linear in linears.items():
        model.set_submodule(name, Tabled(linear, torch.cat(rows[name]), context))
    model.timestep_table = context  # type: ignore[assignment]
    model.timestep_hook = model.register_forward_pre_hook(_look_up, with_kwargs=True)  # type: ignore[assignment]
    return model


def _look_up(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    context = model.timestep_table
    assert isinstance(context, TimestepContext)
    timestep = kwargs.get("timestep")
    if not isinstance(timestep, Tensor):
        raise ValueError("a model with tables of its timesteps takes timestep=..., a tensor, by its name")
    context.look_up(timestep)


def _restore_(model: nn.Module) -> None:
    for name, module in list(model.named_modules()):
        if isinstance(module, Tabled):
            model.set_submodule(name, module.inner)
    hook: Any = vars(model).pop("timestep_hook", None)
    if hook is not None:
        hook.remove()
    vars(model).pop(CONTEXT, None)


Embed = Callable[[Tensor], Tensor]


def _parts(model: nn.Module) -> tuple[Embed, Iterator[tuple[str, nn.Module]]]:
    """From a timestep [1] to what the linears read, and these linears by name."""
    if isinstance(model, CogVideoXTransformer3DModel) and model.ofs_embedding is None:
        names = [
            f"{name}.linear"
            for name, _ in model.named_modules()
            if name.endswith((".norm1", ".norm2")) or name == "norm_out"
        ]
        return (lambda t: _cogvideox(model, t)), ((name, model.get_submodule(name)) for name in names)
    if isinstance(model, WanTransformer3DModel):
        name = "condition_embedder.time_proj"
        return (lambda t: _wan(model, t)), iter([(name, model.get_submodule(name))])
    raise ValueError(
        f"{type(model).__name__}: tables of timesteps are known for CogVideoX (without an offset embedding) "
        "and Wan"
    )


def _cogvideox(model: Any, timestep: Tensor) -> Tensor:
    embedded = model.time_embedding(model.time_proj(timestep).to(model.dtype), None)
    return torch.nn.functional.silu(embedded)


def _wan(model: Any, timestep: Tensor) -> Tensor:
    part = model.condition_embedder
    frequencies = part.timesteps_proj(timestep)
    wide = next(part.time_embedder.parameters()).dtype
    found: Tensor = part.act_fn(part.time_embedder(frequencies.to(wide)).to(model.dtype))
    return found
