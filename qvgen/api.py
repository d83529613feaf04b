"""The library's two verbs: ``quantize_`` before training, ``convert_`` after it."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from qvgen.auxiliary import Phi
from qvgen.config import QuantConfig, QVGenConfig, did_you_mean
from qvgen.linear import FrozenQuantLinear, QuantLinear
from qvgen.phi_init import attach_phis_
from qvgen.quantizers import ClipContext


def quantize_(model: nn.Module, config: QuantConfig | QVGenConfig, skip: Collection[str] = ()) -> nn.Module:
    """Replace the ``nn.Linear`` layers of ``model`` by fake-quantized ones, in place.

    Args:
        model: any module that contains linears and is not one itself.
        config: the quantizers; a ``QVGenConfig`` adds Phi to each layer.
        skip: names, as ``named_modules`` spells them, that stay as they are.

    Returns:
        The same ``model``, every parameter trainable.

    Raises:
        ValueError: a name in ``skip`` that is no linear, a linear of a class of its own that ``skip``
            does not name, nothing left to quantize, or a model that is quantized already.
    """
    quant = config.quant if isinstance(config, QVGenConfig) else config
    names = quantizable_names(model, skip)
    context = make_clip_context(model, quant)
    places = module_names(model)
    for name in names:
        linear = model.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        try:
            layer = QuantLinear.from_linear(linear, quant, context)
        except ValueError as error:
            raise ValueError(f"layer {name}: {error}") from None
        put_(model, places[linear], layer)
    if isinstance(config, QVGenConfig):
        attach_phis_([layer for _, layer in quant_layers(model)], config.rank, config.phi_init)
    return model.requires_grad_(True)


@torch.no_grad()
def convert_(model: nn.Module) -> nn.Module:
    """Freeze a model from ``quantize_`` into plain integer codes, scales and zero points, in place.

    Phi must have decayed to zero; it is removed. Unquantized tensors are rounded to the dtype that
    a checkpoint stores (``QuantConfig.store_dtype``), so that a saved model is the live one.

    Returns:
        The same ``model`` in eval mode, no parameter requiring gradients.

    Raises:
        ValueError: nothing to convert, a Phi that is still at work, or a scale that is not positive and
            finite; nothing has been changed then.
    """
    layers = dict(quant_layers(model))
    if not layers:
        raise ValueError("convert_ found no quantized layer: call quantize_ on the model first")
    places = module_names(model)
    for name, layer in layers.items():
        if layer.phi is not None and bool((layer.phi.gamma != 0).any()):
            raise ValueError(
                f"layer {name}: Phi is still active (gamma up to {float(layer.phi.gamma.max()):g}); "
                "finish the rank decay before convert_; a Phi that was kept (phi_end keep) is no part of "
                "a low-bit model, phi_end drop removes it at the last step"
            )
    refuse_bad_scales(layers)
    config = next(iter(layers.values())).config
    for name in list(layers):  # one by one let go: a large model's weights must not be there twice
        layer = layers.pop(name)
        put_(model, places.pop(layer), FrozenQuantLinear.from_trained(layer))
    return finish_(model, config)


@torch.no_grad()
def refuse_bad_scales(
    layers: Mapping[str, QuantLinear], whole: Callable[[Tensor], Tensor] = lambda tensor: tensor
) -> None:
    """Refuse a scale that is not positive: a negative one turns the order of codes around.

    Args:
        layers: by name.
        whole: gathers a tensor that is spread over processes.

    Raises:
        ValueError: with the layer and its least scale. One wait for the device.
    """
    worst = []
    for layer in layers.values():
        scales = torch.cat([whole(scale).flatten() for scale in layer.scales()])
        worst.append(torch.where(scales.isfinite().all(), scales.min(), math.nan).float())
    for name, value in zip(layers, torch.stack(worst).tolist() if worst else (), strict=True):
        if not value > 0:
            linear = layers[name].config.scale_param == "linear"
            hint = "use scale_param log, which cannot cross zero, or lower" if linear else "lower"
            raise ValueError(
                f"layer {name}: its least scale is {value:g}, must be positive and finite; {hint} lr_scales"
            )


@torch.no_grad()
def finish_(model: nn.Module, config: QuantConfig) -> nn.Module:
    """Round what is not quantized to the dtype that a checkpoint stores; eval mode, no gradients.

    The last step of ``convert_`` and of methods that put inference layers in place themselves.
    """
    for _, tensor in unquantized_tensors(model):
        tensor.copy_(tensor.to(stored_dtype(tensor, config)))
    return model.requires_grad_(False).eval()


def quantizable_names(model: nn.Module, skip: Collection[str]) -> list[str]:
    """Names of the linears to quantize, in the order of ``named_modules``; each once, by its first name.

    A subclass of ``nn.Linear`` is refused unless ``skip`` names it: its own forward would be lost, or
    its owner reads the weight and never calls it (``nn.MultiheadAttention.out_proj``), so that it
    would count as quantized and not be.

    Raises:
        ValueError: as ``quantize_``.
    """
    linears = linears_of(model)
    names = [name for places in linears.values() for name in places]
    for name in skip:
        if name not in names:
            raise ValueError(f"skip: {name!r} is no linear of the model{did_you_mean(name, names)}")
    kept = {m: places[0] for m, places in linears.items() if not set(places) & set(skip)}
    for linear, name in kept.items():
        if type(linear) is not nn.Linear:
            raise ValueError(
                f"layer {name} is a {type(linear).__name__} and no plain nn.Linear: its class, or its owner "
                "(nn.MultiheadAttention reads the weight itself), may do what a quantized layer does not; "
                "skip it, or put an nn.Linear in its place"
            )
    if not kept:
        raise ValueError(f"nothing to quantize: the model has {len(linears)} linears, {len(skip)} skipped")
    return list(kept.values())


def linears_of(model: nn.Module) -> dict[nn.Linear, list[str]]:
    """The linears of an unquantized model, subclasses included, and all names of each.

    Raises:
        ValueError: a quantized layer, or a model that is itself a linear.
    """
    places = module_names(model)
    kinds = (QuantLinear, FrozenQuantLinear)
    quantized = next((names[0] for m, names in places.items() if isinstance(m, kinds)), None)
    if quantized is not None:
        raise ValueError(f"the model is quantized already (layer {quantized}); start from a fresh one")
    if isinstance(model, nn.Linear):
        raise ValueError("the model is itself an nn.Linear and cannot be replaced in place; wrap it")
    return {m: names for m, names in places.items() if isinstance(m, nn.Linear)}


def module_names(model: nn.Module) -> dict[nn.Module, list[str]]:
    """Every module once, in the order of ``named_modules``, with all names it is registered under."""
    places: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        places.setdefault(module, []).append(name)
    return places


def put_(model: nn.Module, names: Collection[str], layer: nn.Module) -> None:
    """Put ``layer`` where ``names`` say: all places of one module, which so stays shared."""
    for name in names:
        model.set_submodule(name, layer)


def make_clip_context(model: nn.Module, config: QuantConfig) -> ClipContext:
    """The context that the layers share; follows the ``timestep`` keyword where it matters."""
    context = ClipContext(config.buckets)
    if context.buckets > 1:
        # Kept on the module, so that a deep copy of the model follows its own context.
        model.clip_context = context  # type: ignore[assignment]
        model.register_forward_pre_hook(_take_timestep, with_kwargs=True)
    return context


def _take_timestep(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    context = model.clip_context
    assert isinstance(context, ClipContext)
    timestep = kwargs.get("timestep")
    if isinstance(timestep, Tensor):
        context.set_timestep(timestep)
    else:
        context.bucket = None


def quant_layers(model: nn.Module) -> Iterator[tuple[str, QuantLinear]]:
    """Name and module of each layer in training form."""
    return ((n, m) for n, m in model.named_modules() if isinstance(m, QuantLinear))


def frozen_layers(model: nn.Module) -> Iterator[tuple[str, FrozenQuantLinear]]:
    """Name and module of each layer in inference form."""
    return ((n, m) for n, m in model.named_modules() if isinstance(m, FrozenQuantLinear))


def phis(model: nn.Module) -> list[Phi]:
    """All auxiliary modules, in the order of ``named_modules``."""
    return [layer.phi for _, layer in quant_layers(model) if layer.phi is not None]


def unquantized_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Floating-point tensors of the state that belong to no quantized weight (biases included)."""
    own = {
        f"{n}.{t}"
        for m, names in module_names(model).items()
        if isinstance(m, FrozenQuantLinear)
        for n in names
        for t in ("codes", "scale", "zero_point", "lower", "upper", "a_scale", "a_zero_point")
    }
    return (
        (name, tensor)
        for name, tensor in model.state_dict().items()
        if name not in own and tensor.is_floating_point()
    )


def stored_dtype(tensor: Tensor, config: QuantConfig) -> torch.dtype:
    """What a checkpoint keeps of an unquantized tensor: float32 for vectors, else as configured."""
    if tensor.dim() < 2 or config.store_dtype == "float32":
        return torch.float32
    return torch.bfloat16
