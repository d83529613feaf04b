"""What a command tells its model beside its name: where the weights lie, how to sample, what to learn from.

A model that understands this says so with ``configurable = True`` and is built as ``Class(options)``;
the others are built without arguments and refuse such options.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from evalharness.api import Model
from evalharness.errors import UserError
from evalharness.registry import Registry

__all__ = ["MEMORY_PRESETS", "ModelOptions", "build_model"]

# resident: everything on the device at once. phases: text encoder, transformer and decoder by turns, the
# decoder in tiles. blocks: as phases, and the transformer's blocks come to the device one by one.
MEMORY_PRESETS = ("phases", "resident", "blocks")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelOptions:
    """Plain values, so that they can be sent to a worker as JSON.

    Attributes:
        weights: folder that diffusers' ``save_pretrained`` wrote; None: the folder of ``evalharness fetch``.
        revision: commit that the weights must be of; None: the pinned one, or any where none is pinned.
        protocol: name of the protocol that decides the generation settings; empty: the model's own.
        generation: generation settings that replace the protocol's, by field name.
        memory: one of ``MEMORY_PRESETS``.
        data: folder of ``evalharness data``; ``teacher``: train along the full-precision model's own
            sampling; None: no training.
    """

    weights: str | None = None
    revision: str | None = None
    protocol: str = ""
    generation: Mapping[str, Any] = field(default_factory=dict)
    memory: str = "phases"
    data: str | None = None

    def __post_init__(self) -> None:
        if self.memory not in MEMORY_PRESETS:
            raise UserError(f"--memory {self.memory}: expected one of {', '.join(MEMORY_PRESETS)}")

    def asked(self) -> list[str]:
        """Flags that differ from their defaults; the protocol is no flag of the model."""
        defaults = asdict(ModelOptions())
        given = asdict(self)
        return [f"--{name}" for name in given if name != "protocol" and given[name] != defaults[name]]


def build_model(registry: Registry, name: str, options: ModelOptions | None = None) -> Model:
    """The model plugin ``name``, built for ``options``.

    Raises:
        UserError: an unknown model, options for a model that takes none, or a value that it refuses.
    """
    options = options or ModelOptions()
    cls = registry.get("models", name)
    if getattr(cls, "configurable", False):
        model: Model = cls(options)
        return model
    if options.asked():
        raise UserError(f"{options.asked()[0]}: model {name} takes no such option; leave it out")
    plain: Model = cls()
    return plain
