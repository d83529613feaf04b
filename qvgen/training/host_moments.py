"""AdamW whose moments of the weights rest in the memory of the host."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from qvgen.training.pinned import HostMemory

MOMENTS = ("exp_avg", "exp_avg_sq")
RESTING_GROUP = "weights"
_ELEMENTS_AT_ONCE = 1 << 26


class HostMomentsAdamW(torch.optim.AdamW):
    """AdamW, to the same bits: moments come to the device for their part of the step, and go back.

    Only those of the group ``weights`` do, which are nearly all, or with ``share`` the first of them. Between
    steps ``state[p][...]`` of such a parameter is a plain tensor of the host, pinned on CUDA: of a sharded
    parameter its shard. ``on_device`` makes of it what AdamW would have. A step takes parts of about 2^26
    numbers; the next part's moments travel while one is worked on, and those of the last part travel back.
    """

    def __init__(self, *args: Any, share: float = 1.0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._travel: _Travel | None = None
        self._host = HostMemory()
        groups = [group["params"] for group in self.param_groups if group["name"] == RESTING_GROUP]
        self.resting = {id(p) for members in groups for p in _first(members, share)}

    def rest_for(self, local: Tensor) -> Tensor:
        """Memory of the host, pinned where ``local`` is on CUDA, for what ``local`` holds."""
        return self._host.like(local, pinned=local.is_cuda)

    def at_rest(self, value: Tensor) -> Tensor:
        """The reverse of ``on_device``: a plain tensor of the host with the shard of ``value``."""
        return self.rest_for(_local(value)).copy_(_local(value))

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step; ``closure`` is not called, and must be None."""
        assert closure is None
        groups = self.param_groups
        try:
            for group in groups:
                members = [p for p in group["params"] if p.grad is not None]
                resting = [p for p in members if id(p) in self.resting]
                if resting:
                    self._step_in_parts(group, resting)
                if staying := [p for p in members if id(p) not in self.resting]:
                    self._step_on(group, staying)
        finally:
            self.param_groups = groups
        return None

    def _step_on(self, group: dict[str, Any], members: Sequence[nn.Parameter]) -> None:
        self.param_groups = [{**group, "params": list(members)}]
        super().step()

    def _step_in_parts(self, group: dict[str, Any], members: Sequence[nn.Parameter]) -> None:
        parts = list(_parts(members))
        if self._travel is None:
            self._travel = _Travel(members[0].device)  # once: the allocator keeps memory for each stream
        travel = self._travel
        travel.begin()
        for number, part in enumerate(parts):
            if number == 0:
                travel.bring(self, part)
            travel.arrived()
            if number + 1 < len(parts):
                travel.bring(self, parts[number + 1])
            self._step_on(group, part)
            travel.take_back(self, part)
        travel.finish()


class _Travel:
    """Copies between host and device beside the work; on a CPU there is nothing to do."""

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"
        if self.cuda:
            self._in, self._out = torch.cuda.Stream(device), torch.cuda.Stream(device)
            self._device = device
            self.begin()

    def begin(self) -> None:
        """A step on the current stream."""
        if self.cuda:
            self._work = torch.cuda.current_stream(self._device)
            self._returned: list[torch.cuda.Event] = []

    def bring(self, optimizer: torch.optim.Optimizer, part: Sequence[nn.Parameter]) -> None:
        """Start to copy the moments of ``part`` to the device; those without any get theirs by AdamW."""
        if not self.cuda:
            self._swap(optimizer, part)
            return
        if len(self._returned) > 1:  # at most three parts are on the device
            self._returned.pop(0).synchronize()
        with torch.cuda.stream(self._in):
            self._swap(optimizer, part)
        for parameter in part:
            for key in MOMENTS:
                if key in optimizer.state[parameter]:
                    _local(optimizer.state[parameter][key]).record_stream(self._work)

    def arrived(self) -> None:
        """The work that follows waits for what was brought."""
        if self.cuda:
            self._work.wait_stream(self._in)

    def take_back(self, optimizer: HostMomentsAdamW, part: Sequence[nn.Parameter]) -> None:
        """Copy the moments of ``part`` to the host once the work so far is done."""
        if self.cuda:
            self._out.wait_stream(self._work)
        for parameter in part:
            state = optimizer.state[parameter]
            for key in MOMENTS:
                value = _local(state[key])
                rest = state.get(f"rest_{key}")
                if rest is None:
                    rest = optimizer.rest_for(value)
                if self.cuda:
                    with torch.cuda.stream(self._out):
                        rest.copy_(value, non_blocking=True)
                    value.record_stream(self._out)
                else:
                    rest.copy_(value)
                state[key] = rest
                state.pop(f"rest_{key}", None)
        if self.cuda:
            self._returned.append(self._out.record_event())

    def finish(self) -> None:
        """Wait until all is on the host."""
        if self.cuda:
            self._out.synchronize()

    def _swap(self, optimizer: torch.optim.Optimizer, part: Sequence[nn.Parameter]) -> None:
        for parameter in part:
            state = optimizer.state[parameter]
            for key in MOMENTS:
                if key in state:
                    state[f"rest_{key}"] = state[key]
                    state[key] = on_device(parameter, state[key])


def on_device(parameter: Tensor, value: Tensor) -> Tensor:
    """A state of ``parameter`` as AdamW has it: on its device, sharded as it is.

    Others than resting moments (the step count, moments that never left) come back as they are.
    """
    if isinstance(value, DTensor) or (value.dim() == 0 and parameter.dim() > 0):
        return value
    value = value.to(_local(parameter).device, non_blocking=True)
    if not isinstance(parameter, DTensor):
        return value
    return DTensor.from_local(
        value, parameter.device_mesh, parameter.placements, run_check=False,
        shape=parameter.shape, stride=parameter.stride(),
    )  # fmt: skip


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _first(members: Sequence[nn.Parameter], share: float) -> Iterator[nn.Parameter]:
    """As many as together have ``share`` of all numbers, of all processes."""
    room = share * sum(parameter.numel() for parameter in members)
    for parameter in members:
        if room <= 0:
            return
        yield parameter
        room -= parameter.numel()


def _parts(members: Sequence[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """In order, each of about ``_ELEMENTS_AT_ONCE`` numbers on this device."""
    part: list[nn.Parameter] = []
    size = 0
    for parameter in members:
        part.append(parameter)
        size += _local(parameter).numel()
        if size >= _ELEMENTS_AT_ONCE:
            yield part
            part, size = [], 0
    if part:
        yield part
