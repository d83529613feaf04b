"""The cost model: bits per weight, multiply-accumulates (MACs) by precision and bytes, by counting.

It knows no method. A module describes itself by two optional methods, as structure, not by its class:

- ``stored_bits() -> int``: bits of its weights as they are stored: codes, scales, zero points,
  low-rank branches, constants of its activations. Not its bias.
- ``macs(tokens) -> Mapping[(weight bits, activation bits), count]``: what ``tokens`` rows of input
  cost, 16-bit branches and transforms included.

A module with the first, which has ``in_features`` and ``out_features`` as ``nn.Linear`` does, counts as
one linear and is not looked into for what it stores; one with the second is not looked into for what
it computes. Every other number of a model counts 16 bits. Counted beside the linears
are convolutions and ``scaled_dot_product_attention``, all at 16 bits. Not counted: elementwise work
(norms, activations, quantizing itself), and products that a model writes by hand.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, cast, runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = [
    "Cost",
    "Counting",
    "Described",
    "StepMacs",
    "cost_record",
    "count_cost",
    "count_macs",
    "executed_as",
]

FULL_BITS = 16
LOW_BITS = 8
_FULL = (FULL_BITS, FULL_BITS)


@runtime_checkable
class Described(Protocol):
    """A linear layer that tells what it stores."""

    in_features: int
    out_features: int

    def stored_bits(self) -> int: ...


@runtime_checkable
class Counting(Protocol):
    """A layer that tells what it computes."""

    def macs(self, tokens: int) -> Mapping[tuple[int, int], int]: ...


@runtime_checkable
class Executed(Protocol):
    """A layer that tells what a latency of it means."""

    def execution(self) -> str: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What a model stores.

    Attributes:
        linear_weights: weights of all linears, as many as they had at full precision.
        linear_bits: bits that all linears store for them.
        described_weights: of these, the weights of layers that describe themselves.
        described_bits: and their bits.
        other_numbers: all other parameters, biases included.
    """

    linear_weights: int
    linear_bits: int
    described_weights: int
    described_bits: int
    other_numbers: int

    @property
    def total_bits(self) -> int:
        return self.linear_bits + FULL_BITS * self.other_numbers


@dataclass(slots=True)
class StepMacs:
    """MACs of one call.

    Attributes:
        linear: of linears, by bits of weights and activations.
        convolution: at 16 bits.
        attention: both products of all attentions, at 16 bits; a mask saves nothing.
    """

    linear: Counter[tuple[int, int]] = field(default_factory=Counter)
    convolution: int = 0
    attention: int = 0

    @property
    def total(self) -> int:
        return self.linear.total() + self.convolution + self.attention

    @property
    def low(self) -> int:
        """Those with both operands of at most 8 bits."""
        return sum(count for bits, count in self.linear.items() if max(bits) <= LOW_BITS)

    def activation_bits(self) -> float | None:
        """Mean bits of the activations that enter linears, weighted by MACs; None without linears."""
        if not self.linear.total():
            return None
        return sum(bits[1] * count for bits, count in self.linear.items()) / self.linear.total()


def cost_record(model: nn.Module, call: Callable[[], object]) -> dict[str, Any]:
    """The cost model's fields of ``profile.json``: see ``docs/benchmarks.md``.

    Args:
        model: the transformer.
        call: runs one step of it.
    """
    cost, macs = count_cost(model), count_macs(model, call)
    named = {f"w{w}a{a}": count for (w, a), count in sorted(macs.linear.items())}
    activation_bits = macs.activation_bits()
    return {
        "weight_bits": _ratio(cost.linear_bits, cost.linear_weights),
        "quantized_weight_bits": _ratio(cost.described_bits, cost.described_weights),
        "act_bits": None if activation_bits is None else round(activation_bits, 4),
        "low_bit_macs_pct": _ratio(100 * macs.low, macs.total),
        "stored_mb": round(cost.total_bits / 8 / 1e6, 3),
        "macs": {**named, "convolution": macs.convolution, "attention": macs.attention},
    }


def executed_as(model: nn.Module) -> str | None:
    """What the layers say of themselves by ``execution() -> str``: ``real`` if all do, else ``emulated``.

    None if no layer says anything.
    """
    said = {module.execution() for module in model.modules() if isinstance(module, Executed)}
    return ("real" if said == {"real"} else "emulated") if said else None


def count_cost(model: nn.Module) -> Cost:
    """Count what ``model`` stores. A parameter or a module in two places counts once."""
    from torch import nn

    linear_weights = linear_bits = described_weights = described_bits = 0
    seen: set[int] = set()
    others = 0
    for module in _walk(model, Described):
        described = _described(module)
        if described is not None:
            described_weights += described.in_features * described.out_features
            described_bits += described.stored_bits()
            bias = getattr(module, "bias", None)
            owned = [bias] if isinstance(bias, nn.Parameter) else []
        else:
            owned = list(module.parameters(recurse=False))
            if isinstance(module, nn.Linear) and id(module.weight) not in seen:
                linear_weights += module.weight.numel()
                linear_bits += FULL_BITS * module.weight.numel()
                seen.add(id(module.weight))
        for parameter in owned:
            others += 0 if id(parameter) in seen else parameter.numel()
            seen.add(id(parameter))
    return Cost(
        linear_weights=linear_weights + described_weights,
        linear_bits=linear_bits + described_bits,
        described_weights=described_weights,
        described_bits=described_bits,
        other_numbers=others,
    )


def count_macs(model: nn.Module, call: Callable[[], object]) -> StepMacs:
    """Run ``call`` once and count the MACs of ``model``'s layers and of its attention."""
    from torch import nn

    counted = StepMacs()
    with ExitStack() as stack:
        for module in _walk(model, Counting):
            if isinstance(module, Counting | nn.Linear):
                assert isinstance(module, nn.Module)
                hook = module.register_forward_pre_hook(_linear_hook(counted), with_kwargs=True)
                stack.callback(hook.remove)
            elif isinstance(module, nn.modules.conv._ConvNd):
                stack.callback(module.register_forward_hook(_convolution_hook(counted)).remove)
        stack.enter_context(_attention_counter(counted))
        call()
    return counted


def _walk(module: nn.Module, whole: type[Any], known: set[nn.Module] | None = None) -> Iterator[nn.Module]:
    """The module and those within it, each once, but nothing within one of the kind ``whole``."""
    known = set() if known is None else known
    if module in known:  # in a second place: stored once, and its hook sees every call
        return
    known.add(module)
    yield module
    if not isinstance(module, whole):
        for child in module.children():
            yield from _walk(child, whole, known)


def _described(module: nn.Module) -> Described | None:
    return cast(Described, module) if isinstance(module, Described) else None


def _linear_hook(counted: StepMacs) -> Callable[..., None]:
    def count(module: Any, args: tuple[Tensor, ...], kwargs: Mapping[str, Tensor]) -> None:
        x = args[0] if args else next(iter(kwargs.values()))
        tokens = math.prod(x.shape[:-1])
        if isinstance(module, Counting):
            counted.linear.update(module.macs(tokens))
        else:
            counted.linear[_FULL] += tokens * module.in_features * module.out_features

    return count


def _convolution_hook(counted: StepMacs) -> Callable[..., None]:
    def count(module: Any, args: tuple[Tensor, ...], output: Tensor) -> None:
        # A weight [a, b / groups, *kernel] meets every position of what a is the channels of.
        positions = args[0] if module.transposed else output
        counted.convolution += positions.numel() // module.weight.shape[0] * module.weight.numel()

    return count


def _attention_counter(counted: StepMacs) -> Any:
    from torch.nn.functional import scaled_dot_product_attention
    from torch.overrides import TorchFunctionMode

    class AttentionCounter(TorchFunctionMode):
        def __torch_function__(
            self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
        ) -> Any:
            kwargs = kwargs or {}
            if func is scaled_dot_product_attention:
                named = dict(zip(("query", "key", "value"), args, strict=False)) | dict(kwargs)
                query, key, value = (named[name] for name in ("query", "key", "value"))
                counted.attention += query.numel() * key.shape[-2] + (
                    math.prod(query.shape[:-1]) * key.shape[-2] * value.shape[-1]
                )
            return func(*args, **kwargs)

    return AttentionCounter()


def _ratio(part: int, whole: int) -> float | None:
    return round(part / whole, 4) if whole else None
