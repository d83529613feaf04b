"""A linear layer that keeps its weight packed and multiplies integers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from qvgen.config import QuantConfig
from qvgen.hadamard import Hadamard
from qvgen.linear import FrozenQuantLinear
from qvgen.packed.activations import Quantized, quantize_activations
from qvgen.packed.backends import Backend, kernels, resolve
from qvgen.packed.layout import ActivationSpec, Kernels, PackedWeight, pack_rows, row_bytes
from qvgen.packed.products import Operand, float64_product, fp8_product, int8_product, linear
from qvgen.packed.sources import Read
from qvgen.packed.triton_linear import Tokens
from qvgen.quantizers import ClipContext, scale_shape

EXACT = ("scale", "zero_point", "lower", "upper", "a_scale", "a_zero_point")


class PackedLinear(nn.Module):
    """The finished layer with true low-bit storage and integer arithmetic.

    ``y = s_w s_a [sum c_w c_a - z_a sum c_w - z_w sum c_a + K z_w z_a] + b`` with exact sums of integer
    codes, the same codes as ``FrozenQuantLinear`` has, and one rounding to the dtype of the input.

    State: ``codes`` uint8 of ``layout.pack_rows``, ``scale`` and ``zero_point`` float32 [out, 1] or
    [out, G], ``bias`` [out] or None, and what quantizes inputs under the names of
    ``FrozenQuantLinear``. After a change of the state call ``prepare_``.

    Attributes:
        backend: what was asked for.
        executed: what runs, never ``AUTO``.
        hides_epilogue: whether GELU belongs into products of 16-bit results (``Int8Linear``).
    """

    codes: Tensor
    scale: Tensor
    zero_point: Tensor
    lower: Tensor
    upper: Tensor
    a_scale: Tensor
    a_zero_point: Tensor
    expanded: Tensor

    def __init__(
        self, shape: tuple[int, int], bias: nn.Parameter | None, config: QuantConfig, context: ClipContext,
        *, device: torch.device, backend: Backend = Backend.AUTO,
    ) -> None:  # fmt: skip
        super().__init__()
        self.out_features, self.in_features = shape
        self.config, self.context = config, context
        self.backend = self.executed = backend
        self._offset = True
        self.kernels: Kernels | None = None  # at hand, so that torch.compile sees no import
        self.hides_epilogue = False
        self._ready_for: torch.device | None = None
        size = (shape[0], row_bytes(shape[1], config.w_bits))
        self.register_buffer("codes", torch.zeros(size, dtype=torch.uint8, device=device))
        groups = (shape[0], scale_shape(shape, config)[1])
        for name in ("scale", "zero_point"):
            self.register_buffer(name, torch.zeros(groups, device=device))
        static = config.a_range == "static"
        for name, kept in (("lower", config.learn_clip), ("upper", config.learn_clip),
                           ("a_scale", static), ("a_zero_point", static)):  # fmt: skip
            # What is kept comes from a checkpoint; ones that are not must be real from the start.
            place = device if kept else torch.device("cpu") if device.type == "meta" else device
            count = config.buckets if kept else 1
            self.register_buffer(name, torch.ones(count, device=place), persistent=kept)
        # Without elements where nothing is expanded: accelerate moves no buffer that is None.
        self.register_buffer("expanded", self._nothing(), persistent=False)
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)

    @classmethod
    @torch.no_grad()
    def from_frozen(cls, layer: FrozenQuantLinear, backend: Backend = Backend.AUTO) -> Self:
        """The same function in packed form; takes over the bias.

        Raises:
            ValueError: ``backend`` cannot execute the layer where it is.
        """
        shape = (layer.out_features, layer.in_features)
        packed = cls(
            shape, layer.bias, layer.config, layer.context, device=layer.codes.device, backend=backend
        )
        packed.codes.copy_(pack_rows(layer.codes, layer.config.w_bits))
        for name in EXACT:
            getattr(packed, name).copy_(getattr(layer, name)[: len(getattr(packed, name))])
        return packed.prepare_()

    @torch.no_grad()
    def prepare_(self, *, passing: bool = False) -> Self:
        """Choose the backend for the device that the layer is on, and derive what it keeps beside.

        The ``cpu`` and ``scaled_mm`` backends hold the codes expanded to a byte each; the others nothing.

        Args:
            passing: whether the layer may only rest there. On the host of a GPU then nothing is expanded, and
                a backend of the GPU is no error, until the layer is called.

        Raises:
            ValueError: the backend asked for cannot execute the layer there.
        """
        self.kernels, self._ready_for, self.hides_epilogue = None, None, False
        self._hold(self._nothing())
        device = self.codes.device
        if device.type == "meta":
            self._ready_for = device
            return self
        for name in EXACT:
            if name in self._non_persistent_buffers_set:
                setattr(self, name, self.get_buffer(name).to(device))
        weight = self.packed_weight()
        self._offset = bool((self.zero_point != 2 ** (self.config.w_bits - 1)).any())
        spec = ActivationSpec.of(self.config, self.lower[:1], self.upper[:1])
        rests = passing and device.type == "cpu" and torch.cuda.is_available()
        try:
            self.executed = resolve(self.backend, weight, spec, device)
        except ValueError:
            if not rests:
                raise
            self.executed = self.backend
        if rests:
            return self
        if self.executed is Backend.TRITON_INT8:
            self.kernels = Kernels.of(kernels())
            self.hides_epilogue = kernels().hides_epilogue(weight, spec, device)
        if self.executed is Backend.CPU:
            self._hold(weight.centred())
        elif self.executed is Backend.SCALED_MM:
            self._hold(weight.centred().to(torch.float8_e4m3fn))
        self._ready_for = device
        return self

    def _hold(self, expanded: Tensor) -> None:
        """In the same tensor, which offloading with streams knows by identity."""
        if self.expanded.is_meta or expanded.is_meta:
            self.expanded = expanded
        else:
            self.expanded.data = expanded

    def _nothing(self) -> Tensor:
        device = self.codes.device
        return torch.empty(0, dtype=torch.int8, device="cpu" if device.type == "meta" else device)

    def settle_(self) -> None:
        """Get ready for where the tensors are, if somebody moved them without ``.to``, as offloading does.

        Also where the codes came back without what was expanded of them.

        Raises:
            ValueError: the backend asked for cannot execute the layer there.
        """
        if self._ready_for != self.codes.device or (
            self.executed in (Backend.CPU, Backend.SCALED_MM) and not self.expanded.numel()
        ):
            self.prepare_()

    def lies_on(self, device: torch.device) -> bool:
        """Whether codes and bias are there."""
        bias = self._parameters.get("bias")
        return self._buffers["codes"].device == device and (bias is None or bias.device == device)  # type: ignore[union-attr]

    def packed_weight(self) -> PackedWeight:
        """The weight as kernels take it."""
        shape = (self.out_features, self.in_features)
        return PackedWeight(self.codes, self.scale, self.zero_point, self.config.w_bits, shape)

    def activation_spec(self, x: Tensor) -> ActivationSpec:
        """How ``x`` is quantized, with the clips or steps of its timestep."""
        static = self.config.a_range == "static"
        pair = (self.a_scale, self.a_zero_point) if static else (self.lower, self.upper)
        picked = [r if len(r) == 1 else self.context.pick(r, x) for r in pair]
        return ActivationSpec.of(self.config, picked[0], picked[1])

    @property
    def has_own_numbers(self) -> bool:
        """Whether what quantizes the input is this layer's own, and not the same for all of its kind."""
        return self.config.learn_clip or self.config.a_range == "static"

    def forward(self, x: Tensor | Read, gelu: bool = False) -> Tensor:
        """[..., N] from x [..., K]; or from a ``Read`` of it that was made for this layer.

        ``gelu``: GELU, by its tanh formula, follows. ``triton_int8`` computes it before the one rounding,
        the others, as a model does, after it.
        """
        self.settle_()
        if isinstance(x, Read):
            return self._multiply_read(x, gelu)
        spec = self.activation_spec(x)
        if self.executed is Backend.TRITON_INT8:
            assert self.kernels is not None, "prepare_ was not called"
            return self.kernels.int8_linear(x, self.packed_weight(), spec, self.bias, gelu)
        return self._multiply(quantize_activations(x, spec), x.shape, x.dtype, gelu)

    def rotated_read(self, x: Tensor, input_scale: Tensor, rotation: Hadamard) -> Read | None:
        """What to call the layer with in place of ``rotation(x * input_scale)``, from one pass over ``x``.

        None where that takes more than one kernel, or the layer is not where ``x`` is (offloading brings it
        for its own call). Ranges of tokens must be dynamic and whole.
        """
        if self.codes.device != x.device:
            return None
        self.settle_()
        if self.kernels is None:
            return None
        tokens = self.kernels.rotate_tokens(x, input_scale, rotation, self.activation_spec(x))
        return None if tokens is None else Read(tuple(x.shape), x.dtype, tokens)

    def scaled_read(
        self, x: Tensor, input_scale: Tensor, shift: float, *, keep: bool
    ) -> tuple[Read, Tensor | None] | None:
        """What to call the layer with in place of ``y = (x + shift) * input_scale``, and ``y`` if kept.

        From one pass over ``x``; None where that takes more, or the layer is elsewhere. Ranges of tokens
        must be dynamic and whole.
        """
        if self.codes.device != x.device:
            return None
        self.settle_()
        if self.kernels is None:
            return None
        made = self.kernels.scale_tokens(x, input_scale, shift, self.activation_spec(x), keep)
        return None if made is None else (Read(tuple(x.shape), x.dtype, made[0]), made[1])

    def _multiply_read(self, read: Read, gelu: bool) -> Tensor:
        if isinstance(read.quantized, Tokens):
            assert self.kernels is not None, "prepare_ was not called"
            weight = self.packed_weight()
            y = self.kernels.multiply_tokens(read.quantized, weight, self.bias, read.dtype, gelu)
            return y.view(*read.shape[:-1], self.out_features)
        return self._multiply(read.quantized, read.shape, read.dtype, gelu)

    def _multiply(self, quantized: Quantized, shape: Sequence[int], dtype: torch.dtype, gelu: bool) -> Tensor:
        wide = self.executed is Backend.REFERENCE or dtype == torch.float64
        if self.executed is Backend.REFERENCE:
            product, codes = float64_product, self.packed_weight().centred()
        else:
            assert self.expanded.numel(), "prepare_ was not called"
            product = int8_product if self.executed is Backend.CPU else fp8_product
            codes = self.expanded
        zero = self.zero_point.double() if wide else self.zero_point
        operand = Operand(codes, self.scale, zero - 2 ** (self.config.w_bits - 1) if self._offset else None)
        y = linear(quantized, operand, self.bias, product, torch.float64 if wide else torch.float32)
        y = y.to(dtype).view(*shape[:-1], self.out_features)
        return functional.gelu(y, approximate="tanh") if gelu else y

    def stored_bits(self) -> int:
        """Bits of the packed weight as stored, padding included, and of what quantizes inputs; no bias."""
        numbers = 0
        for name in EXACT:
            numbers += 0 if name in self._non_persistent_buffers_set else self.get_buffer(name).numel()
        return 8 * self.codes.numel() + 32 * numbers

    def macs(self, tokens: int) -> Mapping[tuple[int, int], int]:
        """Multiply-accumulates for ``tokens`` rows of input, by bits of weights and activations."""
        return {(self.config.w_bits, self.config.a_bits): tokens * self.in_features * self.out_features}

    def execution(self) -> str:
        """What a latency of this layer means: integer arithmetic on packed weights is ``real``."""
        return "emulated" if self.executed is Backend.REFERENCE else "real"

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bits=w{self.config.w_bits}"
            f"a{self.config.a_bits}, backend={self.executed.value}"
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        exact = {name: getattr(self, name) for name in EXACT}
        self.expanded = self._nothing()  # rebuilt where it is needed
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, value in exact.items():
            moved = getattr(self, name)
            if moved.dtype != value.dtype:
                setattr(self, name, value.to(moved.device))
        return self.prepare_(passing=True)
