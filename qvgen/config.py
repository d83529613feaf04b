"""Configuration of the quantizers: frozen dataclasses, checked at birth, with a JSON round trip.

No torch here: configs are read by command lines that must start at once.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, ClassVar, Literal, TypeVar, cast

MIN_BITS, MAX_BITS = 2, 8
FORMAT_VERSION = 1

ConfigT = TypeVar("ConfigT")

RangeInit = Literal["search", "minmax", "lsq"]
ZeroPoint = Literal["learned", "fixed"]
ScaleParam = Literal["log", "linear"]
WeightGranularity = Literal["tensor", "channel", "group"]
ActivationGranularity = Literal["token", "tensor", "group"]
ActivationRange = Literal["dynamic", "static"]
Annealing = Literal["cosine", "linear", "quadratic", "cubic", "sqrt"]
PhiInit = Literal["error", "zero", "random"]
Direction = Literal["small", "large", "random"]
PhiEnd = Literal["decay", "drop", "keep"]


class QuantMethod(StrEnum):
    """How diffusers finds who loads with a config: it asks for the ``value`` of its ``quant_method``."""

    QVGEN = "qvgen"


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantConfig:
    """How the linears of a model are quantized.

    Attributes:
        w_bits: bits of a weight code, 2..8; codes are stored as 0..2^b-1 with a zero point.
        a_bits: bits of an activation code, 2..8.
        w_symmetric: weights around zero: the zero point is the constant 2^(b-1), so codes stand
            for -2^(b-1)..2^(b-1)-1, and the scale is absmax / (2^(b-1)-1) at the start.
        a_symmetric: the same for activations; a range is the larger of its two clipped sides.
        w_granularity: what shares a scale and zero point: one output ``channel``, ``group_size``
            neighbours in it, or the whole ``tensor``.
        w_group_size: weights in a group, a divisor of each layer's inputs; for ``group`` only.
        a_granularity: what shares a range at run time: one ``token`` (last-dimension row),
            a ``group`` of channels in it, or one sample's whole ``tensor``.
        a_group_size: channels in a group, a divisor of each layer's inputs; for ``group`` only.
        a_range: ``dynamic``: taken from the activations at run time; ``static``: a trained step and
            offset for each layer (and timestep bucket), see ``qvgen.static``; granularity ``tensor``.
        clip_first: whether the gradients of static steps and of weights are those of LSQ's equation 3,
            which clips before it rounds (see ``fake_quant.weight_fake_quant``).
        range_init: first range of a weight block: ``search`` tries 80 shrunken ranges and keeps the
            one with the least sum of |error|^2.4; ``minmax`` takes the block's extremes; ``lsq`` is
            the step ``2 mean|w| / sqrt(2^(b-1) - 1)`` of the LSQ paper, for symmetric weights.
        zero_point: ``learned`` is LSQ+ (real-valued, trained), ``fixed`` is LSQ (integer, constant).
            Says nothing where ``w_symmetric`` leaves no choice.
        scale_param: what the optimiser sees of a weight scale: its logarithm, or the scale itself
            (see ``WeightQuantizer``).
        learn_clip: whether each layer learns how much of a token's range it keeps.
        clip_init: share of the range kept at the start, in (0, 1); used with ``learn_clip``.
        clip_buckets: number G of learnt clips per layer; the one at ``floor(t * G / 1000)`` serves
            diffusion timestep t. 1 means one clip for all timesteps. With ``a_range`` static: of
            steps and offsets.
        store_dtype: dtype of unquantized tensors of two or more dimensions in a converted model;
            smaller ones stay float32.
    """

    quant_method: ClassVar[QuantMethod] = QuantMethod.QVGEN

    w_bits: int
    a_bits: int
    range_init: RangeInit = "search"
    zero_point: ZeroPoint = "learned"
    scale_param: ScaleParam = "log"
    learn_clip: bool = False
    clip_init: float = 0.95
    clip_buckets: int = 1
    store_dtype: Literal["bfloat16", "float32"] = "bfloat16"
    w_symmetric: bool = False
    a_symmetric: bool = False
    w_granularity: WeightGranularity = "channel"
    w_group_size: int = 64
    a_granularity: ActivationGranularity = "token"
    a_group_size: int = 64
    a_range: ActivationRange = "dynamic"
    clip_first: bool = False

    def __post_init__(self) -> None:
        check_int("w_bits", self.w_bits, MIN_BITS, MAX_BITS)
        check_int("a_bits", self.a_bits, MIN_BITS, MAX_BITS)
        check_choice("range_init", self.range_init, ("search", "minmax", "lsq"))
        check_choice("zero_point", self.zero_point, ("learned", "fixed"))
        check_choice("scale_param", self.scale_param, ("log", "linear"))
        check_choice("store_dtype", self.store_dtype, ("bfloat16", "float32"))
        check_choice("learn_clip", self.learn_clip, (True, False))
        check_float("clip_init", self.clip_init, 0.0, 1.0, open_low=True, open_high=True)
        check_int("clip_buckets", self.clip_buckets, 1, 1000)
        check_choice("w_symmetric", self.w_symmetric, (True, False))
        check_choice("a_symmetric", self.a_symmetric, (True, False))
        check_choice("w_granularity", self.w_granularity, ("tensor", "channel", "group"))
        check_choice("a_granularity", self.a_granularity, ("token", "tensor", "group"))
        check_int("w_group_size", self.w_group_size, 2, 1 << 16)
        check_int("a_group_size", self.a_group_size, 2, 1 << 16)
        check_choice("a_range", self.a_range, ("dynamic", "static"))
        check_choice("clip_first", self.clip_first, (True, False))
        if self.range_init == "lsq" and not self.w_symmetric:
            raise ValueError("range_init lsq is the start of a symmetric step; set w_symmetric too")
        if self.a_range == "static" and (self.a_granularity != "tensor" or self.learn_clip):
            raise ValueError(
                f"a_range static goes with a_granularity tensor and without learn_clip; a_granularity is "
                f"{self.a_granularity!r}, learn_clip {self.learn_clip}"
            )

    @property
    def buckets(self) -> int:
        """Timestep buckets of clips or static steps; 1 where there are neither."""
        return self.clip_buckets if self.learn_clip or self.a_range == "static" else 1

    @property
    def learns_zero_point(self) -> bool:
        """Whether the zero point of weights is a real-valued parameter."""
        return self.zero_point == "learned" and not self.w_symmetric


@dataclass(frozen=True, slots=True, kw_only=True)
class DecayOptions:
    """How Phi's rank decays: what ``QVGenConfig`` and ``qvgen.schedule.RankSchedule`` share.

    Attributes:
        rank: columns of Phi at the start; a layer smaller than that starts with all it has.
        decay_ratio: lambda, the share of columns that each stage anneals away, in (0, 1].
        annealing: how gamma of the decaying columns goes from 1 to 0 within a stage.
        direction: which singular values decay first.
        max_stages: the stage of this number takes all columns that are left; 0 means no limit.
        hold: share of the steps in which Phi stays whole before its decay begins, in [0, 1).
        decay_until: share of the steps by which Phi is gone, in (hold, 1]; the rest trains without it.
        refactor: whether each stage starts with columns sorted by singular value again. Without
            it the order of the start decays.
        phi_end: ``decay``; ``drop``: whole to the last step, then removed at once; ``keep``: whole,
            and the model cannot be converted (an ablation arm that reports its loss). The last two
            do without ``hold``, ``decay_until`` and ``direction``.
    """

    rank: int = 32
    decay_ratio: float = 0.5
    annealing: Annealing = "cosine"
    direction: Direction = "small"
    max_stages: int = 0
    hold: float = 0.0
    decay_until: float = 1.0
    refactor: bool = True
    phi_end: PhiEnd = "decay"

    def __post_init__(self) -> None:
        check_int("rank", self.rank, 1, 4096)
        check_float("decay_ratio", self.decay_ratio, 0.0, 1.0, open_low=True)
        check_choice("annealing", self.annealing, ("cosine", "linear", "quadratic", "cubic", "sqrt"))
        check_choice("direction", self.direction, ("small", "large", "random"))
        check_int("max_stages", self.max_stages, 0, 4096)
        check_float("hold", self.hold, 0.0, 1.0, open_high=True)
        check_float("decay_until", self.decay_until, 0.0, 1.0, open_low=True)
        if self.decay_until <= self.hold:
            raise ValueError(
                f"decay_until is {self.decay_until} and hold is {self.hold}: Phi must be gone after its "
                "decay has begun; raise decay_until or lower hold"
            )
        check_choice("refactor", self.refactor, (True, False))
        check_choice("phi_end", self.phi_end, ("decay", "drop", "keep"))
        if self.phi_end != "decay" and (self.hold, self.decay_until, self.direction) != (0.0, 1.0, "small"):
            raise ValueError(
                f"phi_end is {self.phi_end!r}: Phi stays whole to the end, so hold ({self.hold}), "
                f"decay_until ({self.decay_until}) and direction ({self.direction!r}) would do nothing; "
                "leave them out"
            )
        if not self.refactor and self.direction != "small":
            raise ValueError(
                f"refactor is off but direction is {self.direction!r}: without sorting again, columns "
                "decay in the order of the start; use direction small, or turn refactor on"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class QVGenConfig(DecayOptions):
    """A ``QuantConfig`` with the auxiliary module Phi on top (arXiv 2505.11497, section 3).

    Attributes:
        quant: the quantizers.
        phi_init: ``error``: best rank-r approximation of W - Q(W); ``zero``: L = 0, R random;
            ``random``: both random.
    """

    quant_method: ClassVar[QuantMethod] = QuantMethod.QVGEN

    quant: QuantConfig
    phi_init: PhiInit = "error"

    def __post_init__(self) -> None:
        if not isinstance(self.quant, QuantConfig):
            raise ValueError(f"quant: expected a QuantConfig, got {type(self.quant).__name__}")
        check_choice("phi_init", self.phi_init, ("error", "zero", "random"))
        DecayOptions.__post_init__(self)


_LOADABLE: dict[str, type[QuantConfig] | type[QVGenConfig]] = {
    "QuantConfig": QuantConfig,
    "QVGenConfig": QVGenConfig,
}


def to_json(config: QuantConfig | QVGenConfig) -> dict[str, Any]:
    """JSON-ready mapping that ``from_json`` reads back; carries ``_type`` and ``_version``."""
    values = {
        f.name: to_json(value) if isinstance(value, QuantConfig) else value
        for f in dataclasses.fields(config)
        for value in (getattr(config, f.name),)
    }
    return {"_type": type(config).__name__, "_version": FORMAT_VERSION, **values}


def from_json(data: Mapping[str, Any]) -> QuantConfig | QVGenConfig:
    """Rebuild what ``to_json`` wrote; only the types listed in this module can come back.

    Raises:
        ValueError: unknown type, version or key, or a value out of range.
    """
    if not isinstance(data, Mapping):
        raise ValueError(f"quantization config: expected a mapping, got {type(data).__name__}")
    kind = data.get("_type")
    check_choice("_type of the quantization config", kind, tuple(_LOADABLE))
    if data.get("_version") != FORMAT_VERSION:
        raise ValueError(
            f"quantization config of version {data.get('_version')!r}: this program reads {FORMAT_VERSION}"
        )
    values = {
        key: from_json(value) if isinstance(value, Mapping) else value
        for key, value in data.items()
        if key not in ("_type", "_version")
    }
    return from_mapping(_LOADABLE[cast(str, kind)], values)


def from_mapping(cls: type[ConfigT], values: Mapping[str, Any] | ConfigT, what: str = "") -> ConfigT:
    """Build the dataclass ``cls`` from plain values as YAML or JSON give them.

    An instance passes through. Numbers written as text (YAML reads ``1e-4`` as a string) become
    floats where the field is a float, lists become tuples where it is a tuple.

    Raises:
        ValueError: an unknown or missing key, with the nearest valid name; a wrong value.
    """
    if isinstance(values, cls):
        return values
    label = what or cls.__name__
    if not isinstance(values, Mapping):
        raise ValueError(f"{label}: expected a mapping, got {values!r}")
    fields = {f.name: f for f in dataclasses.fields(cast(Any, cls))}
    for key in values:
        if key not in fields:
            raise ValueError(f"{label}: unknown key {key!r}{did_you_mean(str(key), fields)}")
    missing = [n for n, f in fields.items() if n not in values and _is_required(f)]
    if missing:
        raise ValueError(f"{label}: missing {', '.join(missing)}")
    return cls(**{key: _plain(value, str(fields[key].type)) for key, value in values.items()})


def did_you_mean(given: str, allowed: Collection[str]) -> str:
    """Tail of an error message: the nearest name, or all of them."""
    near = difflib.get_close_matches(given, list(allowed), n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; allowed: {', '.join(allowed)}"


def check_choice(name: str, value: object, allowed: tuple[object, ...]) -> None:
    """Raise ValueError unless ``value`` is one of ``allowed``, of its type too: 1 is not True."""
    if not any(type(value) is type(choice) and value == choice for choice in allowed):
        raise ValueError(f"{name} is {value!r}; allowed: {', '.join(map(repr, allowed))}")


def check_int(name: str, value: object, low: int, high: int) -> None:
    """Raise ValueError unless ``value`` is a whole number in [low, high]."""
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise ValueError(f"{name} is {value!r}; expected a whole number from {low} to {high}")


def check_float(
    name: str, value: object, low: float, high: float, *, open_low: bool = False, open_high: bool = False
) -> None:
    """Raise ValueError unless ``value`` is a number between the bounds (open ends excluded)."""
    good = (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and (low < value if open_low else low <= value)
        and (value < high if open_high else value <= high)
    )
    if not good:
        interval = f"{'(' if open_low else '['}{low}, {high}{')' if open_high else ']'}"
        raise ValueError(f"{name} is {value!r}; expected a number in {interval}")


def _is_required(f: dataclasses.Field[Any]) -> bool:
    return f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING


def _plain(value: Any, annotation: str) -> Any:
    if annotation == "float" and isinstance(value, str | int) and not isinstance(value, bool):
        try:
            return float(value)
        except ValueError:
            return value
    if annotation.startswith("tuple") and isinstance(value, list):
        return tuple(value)
    return value


__all__ = [
    "DecayOptions",
    "QVGenConfig",
    "QuantConfig",
    "check_choice",
    "check_float",
    "check_int",
    "did_you_mean",
    "from_json",
    "from_mapping",
    "to_json",
]
