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
import os
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from qvgen.api import quant_layers
from qvgen.config import to_json
from qvgen.files import atomic_path, remove_leftovers
from qvgen.schedule import RankSchedule
from qvgen.training.context import TrainContext, extras
from qvgen.training.log import TrainLog
from qvgen.training.optim import parameter_groups
from qvgen.training.parallel import agreed, assign_, rank, whole, world_size
from qvgen.training.recipe import TrainRecipe

STATE_NAME = "train_state.safetensors"
FORMAT_VERSION = 1
_SHARE_OF_TIME = 0.05  # of a training that timed saving may take: a large model's state is large
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
        header, tensors = _read(self.path)
        self._refuse_foreign(header["identity"])
        with torch.no_grad():
            for name, tensor in _model_tensors(self._student).items():
                assign_(tensor, self._stored(f"model/{name}", tensors, tensor.shape))
            for parameter in self._trained():
                if f"step/{self._names[id(parameter)]}" in tensors:  # else it had no gradient so far
                    self._optimizer.state[parameter] = self._moments(parameter, tensors)
            self._log.sums.copy_(self._stored("log/sums", tensors, self._log.sums.shape))
        self._log.restore(header["log"])
        self._random = {kind: tensors[f"random/{kind}"] for kind in header["random"]}
        if self._rewind is not None and rank() == 0:
            self._rewind(header["log"]["lines"])
        step: int = header["step"]
        return step

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
        """Write the state after ``step`` steps in place of an older one, whole or not at all."""
        assert self.path is not None
        random = _random_state(self._ctx.device)
        tensors = {f"model/{name}": tensor for name, tensor in _model_tensors(self._student).items()}
        for parameter in self._trained():
            for key, value in self._optimizer.state.get(parameter, {}).items():
                tensors[f"{key}/{self._names[id(parameter)]}"] = value
        tensors |= {f"random/{kind}": value for kind, value in random.items()}
        tensors["log/sums"] = self._log.sums
        header = {
            "version": FORMAT_VERSION,
            "identity": self._identity,
            "step": step,
            "log": self._log.state(),
            "random": sorted(random),
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        plain = {name: whole(tensor.detach()).cpu().contiguous() for name, tensor in tensors.items()}
        if rank() > 0:
            return
        with atomic_path(self.path) as temporary:
            _write(plain, temporary, {"train_state": json.dumps(header)})

    def _trained(self) -> list[nn.Parameter]:
        return [p for group in self._optimizer.param_groups for p in group["params"]]

    def _moments(self, parameter: nn.Parameter, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        name = self._names[id(parameter)]
        moments = {key: torch.zeros_like(parameter) for key in ("exp_avg", "exp_avg_sq")}
        for key, moment in moments.items():
            assign_(moment, self._stored(f"{key}/{name}", tensors, parameter.shape))
        return {"step": tensors[f"step/{name}"].to(parameter.device, copy=True), **moments}

    def _stored(self, name: str, tensors: Mapping[str, Tensor], shape: torch.Size) -> Tensor:
        tensor = tensors.get(name)
        if tensor is None or tensor.shape != shape:
            found = "is missing" if tensor is None else f"is {tuple(tensor.shape)}, not {tuple(shape)}"
            raise ValueError(
                f"{self.path} is no readable training state ({name} {found}); delete it to start anew"
            )
        return tensor

    def _refuse_foreign(self, found: Mapping[str, Any]) -> None:
        for key in sorted({*self._identity, *found}):
            if self._identity.get(key) != found.get(key):
                raise ValueError(
                    f"{self.path} is the state of another training: {key} was {found.get(key)!r}, is "
                    f"{self._identity.get(key)!r}; delete the file to start anew"
                )


def _write(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str]) -> None:
    """``save_file``, whose error hides the system's: a full disk shall be known as one."""
    try:
        save_file(dict(tensors), path, dict(metadata))
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {})["train_state"])
        tensors = load_file(path)
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        raise ValueError(
            f"{path} is no readable training state ({error}); delete it to start anew"
        ) from error
    if header.get("version") != FORMAT_VERSION:
        raise ValueError(f"{path} is of another version of this program; delete it to start anew")
    return header, tensors


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
    """Names, shapes and the first values of the weights: another model's differ surely."""
    digest = hashlib.sha256()
    weights = {id(p) for p in parameter_groups(student).get("weights", [])}
    for name, parameter in student.named_parameters():
        digest.update(f"{name} {tuple(parameter.shape)};".encode())
        if id(parameter) in weights:
            digest.update(parameter.detach().flatten()[:64].float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]
