"""A training that can be killed: its state in one file, from which the same steps follow.

``train_state.safetensors`` holds the parameters, both Adam moments, the sums of the log and torch's
random state as tensors, and step, log position and identity as JSON in the file's metadata. One
file, so that it is whole or absent; no pickle. Batches are drawn again and thrown away up to the
saved step: contexts promise the same ones at every call.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from qvgen.api import quant_layers
from qvgen.config import to_json
from qvgen.contents import check_contents
from qvgen.diverged import DivergedError
from qvgen.files import atomic_path, remove_leftovers
from qvgen.schedule import RankSchedule
from qvgen.training.context import TrainContext, extras
from qvgen.training.log import TrainLog
from qvgen.training.optim import parameter_groups
from qvgen.training.parallel import agreed, assign_, rank, whole, world_size
from qvgen.training.recipe import TrainRecipe
from qvgen.training.state_file import hash_tensor, read_state, unreadable, write_state

STATE_NAME = "train_state.safetensors"
_SHARE_OF_TIME = 0.05  # of a training that timed saving may take: a large model's state is large
_MOMENTS = ("exp_avg", "exp_avg_sq")
_NO_PART_OF_IDENTITY = ("save_every", "save_every_s")


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

    def restore(self) -> int:
        """Take over a saved state if there is one; returns the step to go on with, else 0.

        Raises:
            ValueError: the file is damaged, or of another model, recipe, schedule or seed.
        """
        if self.path is not None and rank() == 0:
            remove_leftovers(self.path)
        if self.path is None or not self.path.is_file():
            if self.path is not None and self._rewind is not None and rank() == 0:
                self._rewind(0)
            return 0
        header, tensors, intact = read_state(self.path)
        self._refuse_foreign(header["identity"])
        self._check_tensors(header, tensors)
        if not intact:
            raise unreadable(self.path, "altered since it was written: its checksum differs")
        with torch.no_grad():
            for name, tensor in _model_tensors(self._student).items():
                assign_(tensor, tensors[f"model/{name}"])
            for parameter in self._trained():
                if f"step/{self._names[id(parameter)]}" in tensors:  # else it had no gradient so far
                    self._optimizer.state[parameter] = self._moments(parameter, tensors)
            self._log.sums.copy_(tensors["log/sums"])
        self._log.restore(header["log"])
        self._random = {kind: tensors[f"random/{kind}"] for kind in header["random"]}
        if self._rewind is not None and rank() == 0:
            self._rewind(header["log"]["lines"])
        step: int = header["step"]
        return step

    def _check_tensors(self, header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Exactly the tensors that this training has, and a step that lies within it."""
        if not 0 < header["step"] < self._recipe.steps:
            raise unreadable(self.path, f"step {header['step']} of {self._recipe.steps}")
        wanted = {f"model/{name}": tensor for name, tensor in _model_tensors(self._student).items()}
        for parameter in self._trained():
            name = self._names[id(parameter)]
            if any(f"{key}/{name}" in tensors for key in (*_MOMENTS, "step")):
                wanted |= {f"{key}/{name}": parameter for key in _MOMENTS}
                wanted[f"step/{name}"] = torch.zeros(())
        wanted["log/sums"] = self._log.sums
        now = _random_state(self._ctx.device)
        for kind in {"cpu", *header["random"]}:  # one of another kind of device is carried, not used
            wanted[f"random/{kind}"] = now.get(kind, tensors.get(f"random/{kind}", now["cpu"]))
        for name in sorted({*wanted, *tensors}):
            self._check_tensor(name, wanted.get(name), tensors.get(name))

    def _check_tensor(self, name: str, wanted: Tensor | None, found: Tensor | None) -> None:
        if found is None:
            raise unreadable(self.path, f"{name} is missing")
        if wanted is None:
            raise unreadable(self.path, f"{name} is surplus")
        if found.shape != wanted.shape:
            raise unreadable(self.path, f"{name} is {tuple(found.shape)}, not {tuple(wanted.shape)}")
        try:
            check_contents(name, found, wanted.dtype, finite=False)
        except ValueError as error:
            raise unreadable(self.path, str(error)) from None

    def batches(self, step: int) -> Iterator[Any]:
        """The context's batches from the optimiser step ``step`` on; then sets torch's random state."""
        batches = self._ctx.batches(self._recipe.batch_size)
        for _ in itertools.islice(batches, step * self._recipe.accumulate):
            pass
        if "cpu" in self._random:
            torch.set_rng_state(self._random["cpu"])
        if "cuda" in self._random and self._ctx.device.type == "cuda":
            torch.cuda.set_rng_state(self._random["cuda"], self._ctx.device)
        return batches

    def save_if_due(self, step: int) -> None:
        """Save after ``step`` steps if the recipe's steps or seconds have passed; never at the end."""
        if self.path is None or step == self._recipe.steps:
            return
        every, seconds = self._recipe.save_every, self._recipe.save_every_s
        due = bool(every) and step % every == 0
        if not due and seconds and (world_size() == 1 or self._log.is_due(step - 1)):
            wait = max(seconds, self._saving_took / _SHARE_OF_TIME)
            due = agreed(time.monotonic() - self._saved_at >= wait, self._ctx.device)
        if due:
            begun = time.monotonic()
            self.save(step)
            self._saved_at = time.monotonic()
            self._saving_took = self._saved_at - begun

    def save(self, step: int) -> None:
        """Write the state after ``step`` steps in place of an older one, whole or not at all.

        Raises:
            DivergedError: the training diverged.
        """
        assert self.path is not None
        random = _random_state(self._ctx.device)
        tensors = {f"model/{name}": tensor for name, tensor in _model_tensors(self._student).items()}
        for parameter in self._trained():
            for key, value in self._optimizer.state.get(parameter, {}).items():
                tensors[f"{key}/{self._names[id(parameter)]}"] = value
        tensors |= {f"random/{kind}": value for kind, value in random.items()}
        tensors["log/sums"] = self._log.sums
        header = {
            "identity": self._identity,
            "step": step,
            "log": self._log.state(),
            "random": sorted(random),
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        plain = {name: whole(tensor.detach()).cpu().contiguous() for name, tensor in tensors.items()}
        self._refuse_diverged(plain, step)
        if rank() > 0:
            return
        with atomic_path(self.path) as temporary:
            write_state(header, plain, temporary)

    def _trained(self) -> list[nn.Parameter]:
        return [p for group in self._optimizer.param_groups for p in group["params"]]

    def _moments(self, parameter: nn.Parameter, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        name = self._names[id(parameter)]
        moments = {key: torch.zeros_like(parameter) for key in _MOMENTS}
        for key, moment in moments.items():
            assign_(moment, tensors[f"{key}/{name}"])
        return {"step": tensors[f"step/{name}"].to(parameter.device, copy=True), **moments}

    def _refuse_diverged(self, tensors: Mapping[str, Tensor], step: int) -> None:
        """A state that only leads to the same end must not take the place of an older one."""
        names = ["log/sums", *(f"model/{name}" for name, _ in self._student.named_parameters())]
        for name in names:
            if not bool(tensors[name].isfinite().all()):
                raise DivergedError(
                    f"training diverged: {name.removeprefix('model/')} holds NaN or infinity after {step} "
                    "steps; lower lr_scales or lr_weights, or train with precision fp32"
                )

    def _refuse_foreign(self, found: Mapping[str, Any]) -> None:
        for key in sorted({*self._identity, *found}):
            if self._identity.get(key) != found.get(key):
                raise ValueError(
                    f"{self.path} is the state of another training: {key} was {found.get(key)!r}, is "
                    f"{self._identity.get(key)!r}; delete the file to start anew"
                )


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


def training_identity(
    student: nn.Module, recipe: TrainRecipe, schedule: RankSchedule | None, seed: int
) -> dict[str, Any]:
    """What must agree for a state to be resumed, flat, so that an error can name what differs.

    ``student`` is the untrained one: its weights tell one model from another.
    """
    parts: dict[str, Mapping[str, Any]] = {
        "recipe": {k: v for k, v in asdict(recipe).items() if k not in _NO_PART_OF_IDENTITY},
        "schedule": {} if schedule is None else asdict(schedule),
        "quantizers": next((to_json(layer.config) for _, layer in quant_layers(student)), {}),
    }
    flat = {f"{part}.{key}": value for part, values in parts.items() for key, value in values.items()}
    plain: dict[str, Any] = json.loads(
        json.dumps({**flat, "seed": seed, "model": _model_hash(student)}, default=str)
    )
    return plain


def _model_hash(student: nn.Module) -> str:
    """Names and shapes of all parameters; all values of the weights, so that no other model passes."""
    digest = hashlib.sha256()
    weights = {id(p) for p in parameter_groups(student).get("weights", [])}
    for name, parameter in student.named_parameters():
        if id(parameter) in weights:
            hash_tensor(digest, name, parameter)
        else:
            digest.update(f"{name} {tuple(parameter.shape)};".encode())
    return digest.hexdigest()[:16]
