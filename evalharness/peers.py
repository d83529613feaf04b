"""Other libraries' low-bit transformers, for the times of a table: what a row's speed stands beside.

A peer changes the linears of a copy of the full-precision transformer, the same ones that a method may
quantize. Peers are timed, never scored: what they do to videos is not asked here. ``compiled`` changes
nothing but how the blocks run, so that rows can be held against more than the eager model. Nothing here is
needed to run the harness: a library that is not installed costs one clear line.
"""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from evalharness.errors import UserError
from evalharness.versions import package_version

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = [
    "PEERS",
    "AbsentError",
    "Peer",
    "build_peer",
    "chosen_peers",
    "compiler_settings_kept",
    "held_bytes",
]

_FLOAT8_CAPABILITY = (8, 9)
# What torchao sets for the whole process when it quantizes: with its tuner whatever is compiled later takes
# minutes, and is not compiled as it would be alone.
_COMPILER_SETTINGS = (
    "coordinate_descent_tuning", "coordinate_descent_check_all_directions", "force_fuse_int_mm_with_mul",
    "fx_graph_cache", "triton.unique_kernel_names",
)  # fmt: skip


class AbsentError(Exception):
    """Why a peer cannot run here, in one line."""


@dataclass(frozen=True, slots=True)
class Peer:
    """One way of another library.

    Attributes:
        library: its name on the package index; empty for torch itself.
        summary: what it does to weights and inputs.
        bits: of weights, as stored.
        change: changes the linears named of a module, in place, and returns it.
    """

    library: str
    summary: str
    bits: int
    change: Callable[[nn.Module, Sequence[str]], nn.Module]


def chosen_peers(text: str) -> tuple[str, ...]:
    """Names from ``--peers``: ``none``, ``all`` or a comma list.

    Raises:
        UserError: an unknown name.
    """
    if text in ("", "none"):
        return ()
    names = tuple(PEERS) if text == "all" else tuple(dict.fromkeys(one.strip() for one in text.split(",")))
    unknown = [name for name in names if name not in PEERS]
    if unknown:
        raise UserError(f"--peers {unknown[0]}: expected none, all, or some of {', '.join(PEERS)}")
    return names


def build_peer(
    name: str, module: nn.Module, linears: Sequence[str], *, compiler: str | None = None
) -> nn.Module:
    """The peer's form of a copy of ``module``, ready to be called.

    Args:
        name: of ``PEERS``.
        module: the full-precision transformer, where it is to run; left as it is.
        linears: names of those that may be changed.
        compiler: backend of ``torch.compile`` for the repeated blocks; None: a peer runs as its library
            gives it.

    Raises:
        AbsentError: the library is not installed, or does not run on this device, with its own words.
    """
    peer = PEERS[name]
    if peer.library and package_version(peer.library) is None:
        raise AbsentError(f"{peer.library} is not installed: pip install {peer.library}")
    try:
        changed = peer.change(_sharing_copy(module).eval(), linears)
    except AbsentError:
        raise
    except Exception as error:  # whatever a library does on a device that it does not know
        first = (str(error).splitlines() or [""])[0]
        raise AbsentError(
            f"{peer.library or name} does not run here: {type(error).__name__}: {first}"
        ) from error
    return changed if compiler is None else compile_blocks_(changed, compiler)


@contextmanager
def compiler_settings_kept() -> Iterator[None]:
    """What a library changes of inductor's settings within is as before afterwards."""
    config: Any = importlib.import_module("torch._inductor.config")
    known = {}
    for name in _COMPILER_SETTINGS:
        value: Any = config
        for part in name.split("."):
            value = getattr(value, part, None)
        if value is not None:
            known[name] = value
    with config.patch(known):
        yield


def _sharing_copy(module: nn.Module) -> nn.Module:
    """A second module on the same numbers: libraries put other tensors in the place of those they change."""
    from torch import nn

    shared: dict[int, Any] = {
        id(p): nn.Parameter(p.detach(), requires_grad=False) for p in module.parameters()
    }
    shared |= {id(buffer): buffer for buffer in module.buffers()}
    return copy.deepcopy(module, shared)


def compile_blocks_(module: nn.Module, compiler: str = "inductor") -> nn.Module:
    """Compile each block of every list of modules in place, so that equal ones share what is compiled."""
    import torch

    torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)
    for block in blocks_of(module):
        block.compile(backend=compiler, dynamic=False)
    return module


def blocks_of(module: nn.Module) -> Iterator[nn.Module]:
    """The repeated blocks: entries of the outermost lists of modules."""
    from torch import nn

    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield from child
        else:
            yield from blocks_of(child)


def held_bytes(module: nn.Module) -> int:
    """Bytes of all parameters and buffers, each once; of libraries' own kinds of tensor what is inside."""
    found = {
        part.data_ptr(): part.numel() * part.element_size()
        for tensor in (*module.parameters(), *module.buffers())
        for part in _plain_parts(tensor)
    }
    return sum(found.values())


def _plain_parts(tensor: Any) -> Iterator[torch.Tensor]:
    """A tensor that is a shell around others names them; its own size is that of what it stands for."""
    if not hasattr(tensor, "__tensor_flatten__"):
        yield tensor
        return
    for name in tensor.__tensor_flatten__()[0]:
        yield from _plain_parts(getattr(tensor, name))


def _compiled(module: nn.Module, linears: Sequence[str]) -> nn.Module:
    return compile_blocks_(module)


def _torchao(make: Callable[[Any], Any]) -> Callable[[nn.Module, Sequence[str]], nn.Module]:
    def change(module: nn.Module, linears: Sequence[str]) -> nn.Module:
        library = importlib.import_module("torchao.quantization")
        names = set(linears)
        library.quantize_(module, make(library), filter_fn=lambda _, name: name in names)
        return module

    return change


def _float8(library: Any) -> Any:
    import torch

    if not torch.cuda.is_available() or torch.cuda.get_device_capability() < _FLOAT8_CAPABILITY:
        raise AbsentError("torchao's float8 needs an NVIDIA GPU of compute capability 8.9 or later")
    return library.Float8DynamicActivationFloat8WeightConfig(granularity=library.PerRow())


def _nf4(module: nn.Module, linears: Sequence[str]) -> nn.Module:
    library = importlib.import_module("bitsandbytes")

    def replaced(linear: Any) -> nn.Module:
        weight: torch.Tensor = linear.weight
        layer: Any = library.nn.Linear4bit(
            linear.in_features, linear.out_features, bias=linear.bias is not None,
            compute_dtype=weight.dtype, quant_type="nf4",
        )  # fmt: skip
        # Quantized by the move to the device, as the library does it.
        layer.weight = library.nn.Params4bit(weight.detach().cpu(), requires_grad=False, quant_type="nf4")
        layer.bias = linear.bias
        moved: nn.Module = layer.to(weight.device)
        return moved

    return _replace_(module, linears, replaced)


def _quanto(module: nn.Module, linears: Sequence[str]) -> nn.Module:
    library = importlib.import_module("optimum.quanto")
    library.quantize(module, weights=library.qint8, include=list(linears))
    library.freeze(module)
    return module


def _replace_(module: nn.Module, names: Sequence[str], make: Callable[[Any], nn.Module]) -> nn.Module:
    for name in names:
        module.set_submodule(name, make(module.get_submodule(name)))
    return module


PEERS: Mapping[str, Peer] = {
    "compiled": Peer("", "full precision, each block compiled by torch", 16, _compiled),
    "torchao-int8": Peer(
        "torchao", "W8A8, int8, a scale a token and a channel",
        8, _torchao(lambda library: library.Int8DynamicActivationInt8WeightConfig()),
    ),
    "torchao-float8": Peer("torchao", "W8A8, float8, a scale a row", 8, _torchao(_float8)),
    "bitsandbytes-nf4": Peer("bitsandbytes", "W4, NormalFloat; products at full precision", 4, _nf4),
    "quanto-int8": Peer("optimum-quanto", "W8, int8; products at full precision", 8, _quanto),
}  # fmt: skip
