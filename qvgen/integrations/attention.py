"""Attention processors for diffusers' CogVideoX and Wan whose projections share one quantized read.

Apart from that they compute what diffusers' own do, operation by operation.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.attention_processor import CogVideoXAttnProcessor2_0
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.models.transformers.transformer_wan import WanAttnProcessor
from torch import Tensor, nn
from torch.nn import functional

from qvgen.packed.attention8 import attention8
from qvgen.packed.linear import PackedLinear
from qvgen.packed.reading import linears
from qvgen.packed.sources import Source
from qvgen.transformed import TransformedQuantLinear, mark_twins_

Rotary = tuple[Tensor, Tensor]
TEXT_TOKENS = 512  # of Wan's text encoder, a constant in diffusers too


def cogvideox_attention(
    attn: Any, joined: Source, text_length: int, mask: Tensor | None, rotary: Rotary | None
) -> Tensor:
    """Projections and attention of text and video tokens together, [B, S, d], before the output's linear."""
    query, key, value = (
        one.unflatten(-1, (attn.heads, -1)).transpose(1, 2)
        for one in linears(joined, (attn.to_q, attn.to_k, attn.to_v))
    )
    if attn.norm_q is not None:
        query = attn.norm_q(query)
    if attn.norm_k is not None:
        key = attn.norm_k(key)
    if rotary is not None:
        query = _rotated_behind(query, text_length, rotary)
        key = key if attn.is_cross_attention else _rotated_behind(key, text_length, rotary)
    if mask is None and in_8_bits(attn):
        mixed = attention8(query, key, value)
    else:
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    return mixed.transpose(1, 2).flatten(2)


def in_8_bits(attn: Any) -> bool:
    """Whether ``attend_in_8_bits_`` chose 8-bit operands for this attention."""
    return bool(getattr(attn, "eight_bits", False))


def attend_in_8_bits_(model: nn.Module, on: bool = True) -> nn.Module:
    """Let self-attention of blocks that share reads run on 8-bit operands, in place: an extra, not exact.

    See ``qvgen.packed.attention8``. Whoever reports a time or a score of such a model has to say so.

    Returns:
        The same ``model``.

    Raises:
        ValueError: none of its attentions can; ``pack_`` makes those of CogVideoX and Wan ones that can.
    """
    found = 0
    for module in model.modules():
        if type(getattr(module, "processor", None)) in SHARED.values() and _attends_to_itself(module):
            module.eight_bits = on  # type: ignore[assignment]
            found += 1
    if not found:
        raise ValueError(f"{type(model).__name__} has no attention with packed projections; call pack_ first")
    return model


def _attends_to_itself(attn: Any) -> bool:
    return not attn.is_cross_attention


def _rotated_behind(x: Tensor, first: int, rotary: Rotary) -> Tensor:
    """Rotate the tokens of x [B, H, S, D] from ``first`` on."""
    return torch.cat([x[:, :, :first], apply_rotary_emb(x[:, :, first:], rotary)], dim=2)


class SharedCogVideoXProcessor:
    """``CogVideoXAttnProcessor2_0`` with one read for q, k and v."""

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None, image_rotary_emb: Rotary | None = None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        text_length = encoder_hidden_states.shape[1]
        joined = torch.cat([encoder_hidden_states, hidden_states], dim=1)
        if attention_mask is not None:
            batch, length, _ = joined.shape
            prepared = attn.prepare_attention_mask(attention_mask, length, batch)
            attention_mask = prepared.view(batch, attn.heads, -1, prepared.shape[-1])
        mixed = cogvideox_attention(attn, joined, text_length, attention_mask, image_rotary_emb)
        mixed = attn.to_out[1](attn.to_out[0](mixed))
        return mixed[:, text_length:], mixed[:, :text_length]


def wan_attention(
    attn: Any, x: Source, context: Tensor | None, mask: Tensor | None, rotary: Rotary | None,
    backend: Any = None, parallel: Any = None,
) -> Tensor:  # fmt: skip
    """Projections and attention, [B, S, d], before the output's linear.

    Args:
        attn: a ``WanAttention``.
        x: what queries are made from; without ``context`` keys and values too.
        context: of cross-attention; tokens of an image, where the layer takes them, before the text's.
        mask: of the attention.
        rotary: cosines and sines.
        backend: of diffusers' attention.
        parallel: how the sequence of self-attention is split, as diffusers has it.
    """
    image = None
    if context is None:
        query, key, value = linears(x, (attn.to_q, attn.to_k, attn.to_v))
    else:
        if attn.add_k_proj is not None:
            image, context = context.split([context.shape[1] - TEXT_TOKENS, TEXT_TOKENS], dim=1)
        (query,) = linears(x, (attn.to_q,))
        key, value = linears(context, (attn.to_k, attn.to_v))
    query, key, value = _heads(attn, attn.norm_q(query), attn.norm_k(key), value)
    if rotary is not None:
        query, key = _rotated(query, rotary), _rotated(key, rotary)
    if context is None and mask is None and in_8_bits(attn):
        q, k, v = (one.transpose(1, 2) for one in (query, key, value))
        return attention8(q, k, v).transpose(1, 2).flatten(2).type_as(query)
    mixed = _dispatched(query, key, value, mask, backend, parallel if context is None else None)
    if image is not None:
        key, value = linears(image, (attn.add_k_proj, attn.add_v_proj))
        key, value = _heads(attn, attn.norm_added_k(key), value)
        mixed = mixed + _dispatched(query, key, value, None, backend, None)
    return mixed


def _heads(attn: Any, *tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(one.unflatten(2, (attn.heads, -1)) for one in tensors)


def _rotated(x: Tensor, rotary: Rotary) -> Tensor:
    """Wan's rotation of neighbouring channels, x [B, S, H, D]; cosines and sines stand twice each."""
    cos, sin = rotary[0][..., 0::2], rotary[1][..., 1::2]
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    out = torch.empty_like(x)  # rounded to the dtype of x on being stored
    out[..., 0::2] = even * cos - odd * sin
    out[..., 1::2] = even * sin + odd * cos
    return out


def _dispatched(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, backend: Any, parallel: Any
) -> Tensor:
    mixed: Tensor = dispatch_attention_fn(
        query, key, value, attn_mask=mask, dropout_p=0.0, is_causal=False, backend=backend,
        parallel_config=parallel,
    )  # fmt: skip
    return mixed.flatten(2, 3).type_as(query)


class SharedWanProcessor:
    """``WanAttnProcessor`` with one read for q, k and v, or for k and v of cross-attention."""

    _attention_backend: Any = None  # diffusers sets both
    _parallel_config: Any = None

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None, rotary_emb: Rotary | None = None,
    ) -> Tensor:  # fmt: skip
        mixed = wan_attention(
            attn, hidden_states, encoder_hidden_states, attention_mask, rotary_emb, self._attention_backend,
            self._parallel_config,
        )  # fmt: skip
        out: Tensor = attn.to_out[1](attn.to_out[0](mixed))
        return out


SETS = (("to_q", "to_k", "to_v"), ("add_k_proj", "add_v_proj"))
SHARED = {CogVideoXAttnProcessor2_0: SharedCogVideoXProcessor, WanAttnProcessor: SharedWanProcessor}


def is_packed(layer: object) -> bool:
    """Whether it is a packed linear, or one within a transform of its input."""
    return isinstance(layer.inner if isinstance(layer, TransformedQuantLinear) else layer, PackedLinear)


def share_reads_(model: nn.Module) -> nn.Module:
    """Let the packed projections of CogVideoX's and Wan's attention share their reads, in place.

    Outputs stay the same bit for bit. Attention of other models, or without a packed projection, is
    left as it is.

    Returns:
        The same ``model``.
    """
    number = 1
    for module in model.modules():
        replacement = SHARED.get(type(getattr(module, "processor", None)))
        for names in SETS:
            number = mark_twins_([getattr(module, name) for name in names if hasattr(module, name)], number)
        if replacement is not None and any(is_packed(getattr(module, name, None)) for name in SETS[0]):
            old: Any = module.processor
            new = replacement()
            if isinstance(new, SharedWanProcessor):
                new._attention_backend = old._attention_backend
                new._parallel_config = old._parallel_config
            module.processor = new  # type: ignore[assignment]
    return model
