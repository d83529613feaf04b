"""Blocks of diffusers' CogVideoX and Wan in which norm, modulation and GELU belong to the linears' reads.

A block with packed linears becomes one of these by ``fuse_``: the same parameters under the same names,
the same arguments. Where no kernels take the sources (``qvgen.packed.sources``), or the norms are offloaded
one by one, it computes what diffusers' block does, operation by operation.
"""

from __future__ import annotations

from typing import Any

from diffusers.models.activations import GELU
from diffusers.models.attention import FeedForward
from diffusers.models.normalization import FP32LayerNorm
from diffusers.models.transformers.cogvideox_transformer_3d import CogVideoXBlock
from diffusers.models.transformers.transformer_wan import WanTransformerBlock
from torch import Tensor, nn

from qvgen.integrations.attention import (
    Rotary,
    SharedCogVideoXProcessor,
    SharedWanProcessor,
    cogvideox_attention,
    wan_attention,
)
from qvgen.packed.linear import PackedLinear
from qvgen.packed.reading import has_kernels, linear_gelu, linears
from qvgen.packed.sources import Gelu, Normed, Part, Source, first_tensor


def _away(norms: tuple[nn.Module, ...], x: Tensor) -> bool:
    """Whether parameters of norms lie elsewhere: offloading by leaves brings them when a norm is called."""
    return any(p is not None and p.device != x.device for norm in norms for p in norm._parameters.values())


def _feed_forward(ff: Any, source: Source) -> Tensor:
    first, second, x = ff.net[0].proj, ff.net[2], first_tensor(source)
    # `has_kernels` first: it gets the layer ready for where offloading has just brought it.
    free = has_kernels(first, x.device) and first.hides_epilogue and x.dtype.itemsize == 2
    if free or not has_kernels(second, x.device):
        out: Tensor = second(linear_gelu(source, first))
        return out
    (wide,) = linears(source, (first,))
    (out,) = linears(Gelu(wide), (second,))
    return out


class FusedCogVideoXBlock(CogVideoXBlock):  # type: ignore[misc]
    """``CogVideoXBlock`` with two joint reads: text and video are normed, modulated and joined in one."""

    def forward(
        self, hidden_states: Tensor, encoder_hidden_states: Tensor, temb: Tensor,
        image_rotary_emb: Rotary | None = None, attention_kwargs: dict[str, Any] | None = None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Video and text tokens, [B, V, d] and [B, T, d]; arguments as of diffusers' block."""
        video, text = hidden_states, encoder_hidden_states
        is_ours = type(self.attn1.processor) is SharedCogVideoXProcessor
        if attention_kwargs or not is_ours or _away((self.norm1.norm, self.norm2.norm), video):
            # A mask, what somebody else's processor wants, or norms that come for their own calls only.
            out: tuple[Tensor, Tensor] = super().forward(
                video, text, temb, image_rotary_emb, attention_kwargs
            )
            return out
        length = text.shape[1]
        source, gate, text_gate = _joined(self.norm1, video, text, temb)
        mixed = cogvideox_attention(self.attn1, source, length, None, image_rotary_emb)
        mixed = self.attn1.to_out[0](mixed)
        video, text = video + gate * mixed[:, length:], text + text_gate * mixed[:, :length]
        source, gate, text_gate = _joined(self.norm2, video, text, temb)
        after = _feed_forward(self.ff, source)
        return video + gate * after[:, length:], text + text_gate * after[:, :length]


def _joined(norm: Any, video: Tensor, text: Tensor, temb: Tensor) -> tuple[Normed, Tensor, Tensor]:
    """Text, then video, as ``CogVideoXLayerNormZero`` norms them; the gates of video and text."""
    numbers = norm.linear(norm.silu(temb))[:, None, :].chunk(6, dim=2)
    shift, scale, gate, text_shift, text_scale, text_gate = numbers
    parts = (Part(text, text_scale, text_shift), Part(video, scale, shift))
    inner = norm.norm
    return Normed(parts, inner.weight, inner.bias, inner.eps, wide=False), gate, text_gate


class FusedWanBlock(WanTransformerBlock):  # type: ignore[misc]
    """``WanTransformerBlock`` whose norms belong to the reads of the linears behind them."""

    def forward(
        self, hidden_states: Tensor, encoder_hidden_states: Tensor, temb: Tensor, rotary_emb: Rotary
    ) -> Tensor:
        """Tokens [B, S, d]; arguments as of diffusers' block."""
        processors = (self.attn1.processor, self.attn2.processor)
        is_ours = all(type(one) is SharedWanProcessor for one in processors)
        if temb.ndim == 4 or not is_ours or _away((self.norm1, self.norm2, self.norm3), hidden_states):
            # A timestep for each token (Wan 2.2), whose modulation is no longer a sample's, somebody else's
            # processor, or norms that come for their own calls only.
            whole: Tensor = super().forward(hidden_states, encoder_hidden_states, temb, rotary_emb)
            return whole
        x = hidden_states
        numbers = (self.scale_shift_table + temb.float()).chunk(6, dim=1)
        shift, scale, gate, ff_shift, ff_scale, ff_gate = numbers
        mixed = _attend(self.attn1, _normed(self.norm1, Part(x, scale, shift)), None, rotary_emb)
        x = (x.float() + mixed * gate).type_as(x)
        source = x if isinstance(self.norm2, nn.Identity) else _normed(self.norm2, Part(x))
        x = x + _attend(self.attn2, source, encoder_hidden_states, None)
        out = _feed_forward(self.ffn, _normed(self.norm3, Part(x, ff_scale, ff_shift)))
        result: Tensor = (x.float() + out.float() * ff_gate).type_as(x)
        return result


def _normed(norm: Any, part: Part) -> Normed:
    return Normed((part,), norm.weight, norm.bias, norm.eps, wide=True)


def _attend(attn: Any, source: Source, context: Tensor | None, rotary: Rotary | None) -> Tensor:
    how = attn.processor
    mixed = wan_attention(
        attn, source, context, None, rotary, how._attention_backend, how._parallel_config
    )  # fmt: skip
    out: Tensor = attn.to_out[0](mixed)
    return out


def fuse_(model: nn.Module) -> nn.Module:
    """Make the blocks of CogVideoX and Wan that hold packed linears fused ones, in place.

    Others, and blocks of another make-up (another activation, dropout), stay as they are. A fused block whose
    attention is given another processor afterwards uses that, and fuses nothing.

    Returns:
        The same ``model``.
    """
    for module in model.modules():
        if type(module) is CogVideoXBlock and _fits(module, module.ff, ("norm1.norm", "norm2.norm")):
            module.__class__ = FusedCogVideoXBlock
        elif type(module) is WanTransformerBlock and _fits(module, module.ffn, ("norm1", "norm2", "norm3")):
            module.__class__ = FusedWanBlock
    return model


def _fits(block: nn.Module, ff: Any, norms: tuple[str, ...]) -> bool:
    kinds = (nn.LayerNorm, FP32LayerNorm, nn.Identity)
    return (
        any(isinstance(part, PackedLinear) for part in block.modules())
        and not any(isinstance(part, nn.Dropout) and part.p > 0 for part in block.modules())
        and type(ff) is FeedForward
        and type(ff.net[0]) is GELU
        and ff.net[0].approximate == "tanh"
        and all(type(block.get_submodule(name)) in kinds for name in norms)
    )
