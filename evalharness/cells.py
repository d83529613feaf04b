"""A cell of the table: one method at one bit width with one seed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from evalharness.api import Method
from evalharness.bits import FULL_PRECISION, Bits
from evalharness.errors import UserError, unknown
from evalharness.registry import Registry

__all__ = ["GIVEN", "REFERENCE", "Cell", "build_method"]

REFERENCE = "bf16"
GIVEN = "given"  # videos that were made elsewhere; their bit width is not known (0, 0)
_BITS_FIELDS = ("w_bits", "a_bits")
_PLAIN_TYPES: Mapping[str, type] = {"int": int, "float": float, "bool": bool, "str": str}


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """What is made and measured together.

    Attributes:
        method: name of the plugin.
        options: the method's fields besides the bits.
        label: name of its row, its folder and its checkpoint; the method's own name unless the cell
            is of a variant (``evalharness.variants``).
    """

    model: str
    method: str
    bits: Bits
    seed: int
    options: Mapping[str, Any] = field(default_factory=dict)
    label: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "label", self.label or self.method)

    @property
    def id(self) -> str:
        """Folder name: ``lsq-w3a3-s0``, ``qvgen-r16-w3a3-s0``, ``bf16-s0`` for the reference, or the
        label of videos made elsewhere.
        """
        if self.is_given:
            return self.label
        return f"{REFERENCE}-s{self.seed}" if self.is_reference else f"{self.checkpoint_name}-s{self.seed}"

    @property
    def checkpoint_name(self) -> str:
        """Name of its folder among published checkpoints: ``lsq-w3a3``."""
        return f"{self.label}-{self.bits.label}"

    @property
    def is_variant(self) -> bool:
        return self.label != self.method and not self.is_given

    @property
    def title(self) -> str:
        """For messages: ``method lsq``, or ``method qvgen (variant qvgen-r16)``."""
        return f"method {self.method}" + (f" (variant {self.label})" if self.is_variant else "")

    @property
    def is_given(self) -> bool:
        return self.method == GIVEN

    @property
    def is_reference(self) -> bool:
        return self.method == REFERENCE

    @classmethod
    def reference(cls, model: str, seed: int) -> Cell:
        """The full-precision cell that everything is compared with."""
        return cls(model=model, method=REFERENCE, bits=FULL_PRECISION, seed=seed)

    def to_json(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "method": self.method,
            "label": self.label,
            "w_bits": self.bits.w,
            "a_bits": self.bits.a,
            "seed": self.seed,
            "options": dict(self.options),
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Cell:
        """The inverse of ``to_json``. Records from before there were variants have no label."""
        return cls(
            model=record["model"],
            method=record["method"],
            label=record.get("label", record["method"]),
            bits=Bits(record["w_bits"], record["a_bits"]),
            seed=record["seed"],
            options=record["options"],
        )


def build_method(registry: Registry, cell: Cell) -> Method:
    """The configured method of a quantized cell.

    Raises:
        UserError: unknown method or option, an option of the wrong type, or a value that the
            method itself refuses.
    """
    assert not cell.is_reference
    cls = registry.get("methods", cell.method)
    if not dataclasses.is_dataclass(cls):
        source = registry.plugin("methods", cell.method)
        raise UserError(f"method {cell.method!r} ({source}) is not a dataclass; see evalharness/api.py")
    build = cast(Callable[..., Method], cls)
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init and f.name not in _BITS_FIELDS}
    options = {}
    for name, value in cell.options.items():
        if name not in fields:
            raise unknown(f"option of {cell.title}", name, fields)
        options[name] = _fit(value, str(fields[name].type), f"{cell.label}.{name}")
    try:
        return build(w_bits=cell.bits.w, a_bits=cell.bits.a, **options)
    except (ValueError, TypeError) as error:
        raise UserError(f"{cell.title} at {cell.bits.label}: {error}") from error


def _fit(value: Any, annotation: str, name: str) -> Any:
    """Check a plain annotation (``int``, ``float | None`` ...); leave the others to the method."""
    annotation = annotation.removeprefix("<class '").removesuffix("'>")
    optional = annotation.endswith("| None")
    kind = _PLAIN_TYPES.get(annotation.removesuffix("| None").strip())
    if kind is None or (value is None and optional):
        return value
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise UserError(f"option {name}={value!r}: expected {annotation}")
    return value
