"""What tells one training from another, so that a saved state is not taken for a foreign one's."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from torch import nn

from qvgen.api import quant_layers
from qvgen.config import to_json
from qvgen.schedule import RankSchedule
from qvgen.training.optim import parameter_groups
from qvgen.training.parallel import rank, text_from_first, whole
from qvgen.training.recipe import TrainRecipe
from qvgen.training.state_file import hash_tensor

# Fields of the recipe that say where and when, and change no number of a training that does not diverge.
_NO_PART_OF_IDENTITY = (
    "save_every", "save_every_s", "save_async", "gradient_checkpointing", "checkpointing_keeps", "teacher",
    "offload", "offload_share", "skip_bad_steps",
)  # fmt: skip


def training_identity(
    student: nn.Module, recipe: TrainRecipe, schedule: RankSchedule | None, seed: int
) -> dict[str, Any]:
    """What must agree for a state to be resumed, flat, so that an error can name what differs.

    ``student`` is the untrained one: its weights tell one model from another. Every process must ask.
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
            value = whole(parameter.detach())
            if rank() == 0:
                hash_tensor(digest, name, value)
        else:
            digest.update(f"{name} {tuple(parameter.shape)};".encode())
    return text_from_first(digest.hexdigest()[:16], next(student.parameters()).device)


def differing(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str | None:
    """The first key by which two identities differ; older states name some that are no part of one now."""
    ignored = {f"recipe.{name}" for name in _NO_PART_OF_IDENTITY}
    keys = sorted({*wanted, *found} - ignored)
    return next((key for key in keys if wanted.get(key) != found.get(key)), None)
