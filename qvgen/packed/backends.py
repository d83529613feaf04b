"""Which way a packed linear is executed, and which of them are there for a layer on a device."""

from __future__ import annotations

import functools
import importlib
import importlib.util
from enum import StrEnum
from typing import cast

import torch

from qvgen.packed.layout import ActivationSpec, Int8Linear, PackedWeight
from qvgen.packed.products import int8_product_is_exact

_KERNELS = "qvgen.packed.triton_int8"
_FP8_CODE = 16  # the largest size to which float8_e4m3 has every whole number
_FP8_CHUNK = 128  # products that slow accumulation sums before it goes over to float32
_FP8_SUM = 2**14  # sums up to here keep every bit in the accumulator of Hopper's float8 units
_FLOAT32_SUM = 2**24
_FP8_MULTIPLE = 16
_FP8_CAPABILITY = 9  # the one that this was measured on


class Backend(StrEnum):
    """Ways to execute a ``PackedLinear``. The sums are the same integers in all of them.

    ``AUTO`` takes the first that fits of: on CUDA ``TRITON_INT8``, ``SCALED_MM``; on a CPU ``CPU``;
    ``REFERENCE`` everywhere.
    """

    AUTO = "auto"
    REFERENCE = "reference"
    CPU = "cpu"
    TRITON_INT8 = "triton_int8"
    SCALED_MM = "scaled_mm"


def kernels() -> Int8Linear:
    """The module of the Triton kernels.

    Raises:
        ValueError: there is none, or Triton is not installed.
    """
    module = _kernels()
    if module is None:
        raise ValueError(
            "backend triton_int8 needs Triton and its kernels (qvgen.packed.triton_int8), which are not "
            "here; install triton on a machine with an NVIDIA GPU, or use backend auto"
        )
    return module


def resolve(wanted: Backend, weight: PackedWeight, spec: ActivationSpec, device: torch.device) -> Backend:
    """What ``wanted`` means for a layer on a device; never ``AUTO``.

    Raises:
        ValueError: it was named and cannot execute this layer there.
    """
    if wanted is not Backend.AUTO:
        reason = obstacle(wanted, weight, spec, device)
        if reason is not None:
            raise ValueError(f"backend {wanted.value} {reason}; use backend auto or reference")
        return wanted
    order = (Backend.TRITON_INT8, Backend.SCALED_MM) if device.type == "cuda" else (Backend.CPU,)
    fitting = (one for one in order if obstacle(one, weight, spec, device) is None)
    return next(fitting, Backend.REFERENCE)


def obstacle(
    backend: Backend, weight: PackedWeight, spec: ActivationSpec, device: torch.device
) -> str | None:
    """Why a backend cannot execute a layer exactly on a device; None if it can."""
    if backend is Backend.REFERENCE:
        return None
    if backend is Backend.CPU:
        if device.type != "cpu":
            return f"runs on a cpu, and the layer is on {device.type}"
        if weight.shape[1] == 1:  # torch 2.13: wrong sums of torch._int_mm on a CPU
            return "multiplies wrongly where a layer has one input"
        exact = int8_product_is_exact()
        return None if exact else "is not exact here: this processor's int8 product saturates"
    if backend is Backend.SCALED_MM:
        return _fp8_obstacle(weight, spec, device)
    module = _kernels()
    if module is None:
        return "needs Triton and its kernels (qvgen.packed.triton_int8), which are not here"
    return None if module.fits(weight, spec, device) else "does not execute layers of this kind"


def _fp8_obstacle(weight: PackedWeight, spec: ActivationSpec, device: torch.device) -> str | None:
    a, w = code_sizes(weight, spec)
    if max(a, w) > _FP8_CODE or _FP8_CHUNK * a * w > _FP8_SUM:
        return (
            f"is exact where codes are no larger than {_FP8_CODE} and {_FP8_CHUNK} products no larger than "
            f"{_FP8_SUM}; at {weight.bits} and {spec.bits} bits codes go to {w} and {a}"
        )
    if weight.shape[1] * a * w > _FLOAT32_SUM:
        return f"is exact up to sums of 2^24; {weight.shape[1]} products of {a} and {w} are more"
    if weight.scale.shape[1] != 1 or spec.granularity == "group":
        return "executes no groups"
    if any(size % _FP8_MULTIPLE for size in weight.shape):
        return f"needs sizes that are multiples of {_FP8_MULTIPLE}; the layer is {list(weight.shape)}"
    if device.type != "cuda" or torch.cuda.get_device_capability(device)[0] != _FP8_CAPABILITY:
        return "needs an NVIDIA GPU of compute capability 9 (Hopper), whose sums were measured"
    return None


def code_sizes(weight: PackedWeight, spec: ActivationSpec) -> tuple[int, int]:
    """Largest sizes of activation and weight codes as they are multiplied.

    Activations are held less their zero point where that is whole, which can be either end of the
    range; else, as weights are, less the middle of it.
    """
    levels, half = 2**spec.bits, 2 ** (spec.bits - 1)
    is_centred = spec.static or spec.symmetric or spec.bits == 8
    return half if is_centred else levels - 1, 2 ** (weight.bits - 1)


@functools.cache
def _kernels() -> Int8Linear | None:
    if importlib.util.find_spec("triton") is None or importlib.util.find_spec(_KERNELS) is None:
        return None
    return cast(Int8Linear, importlib.import_module(_KERNELS))
