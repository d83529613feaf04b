"""Attention with 8-bit operands: an extra that is asked for by name and labelled where it ran.

Queries and keys become int8 with a scale a token, keys less their mean over the tokens first, which the
softmax does not see; probabilities and values are float8 where the GPU multiplies it, else the dtype of the
inputs. This is no part of a quantization method here: no checkpoint asks for it, and rows of a table that
used it say so. The idea is that of SageAttention (arXiv 2410.02367, 2411.10958).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from qvgen.fused.switch import AVAILABLE, INTERPRETED, capability, traced
from qvgen.packed.triton_operands import copy_engine

WIDTHS = (64, 128)
BLOCK = 128  # keys are padded to a multiple of it
FLOAT8_TOP = 448.0


def attention8_fits(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether the kernel takes them: [B, H, L, D] of one dtype, D 64 or 128, on a GPU from Ampere on."""
    device = query.device
    runs = INTERPRETED if device.type == "cpu" else device.type == "cuda" and capability(device) >= (8, 0)
    return (
        AVAILABLE
        and runs
        and query.dim() == 4
        and query.shape[-1] in WIDTHS
        and key.shape == value.shape
        and key.shape[:2] == query.shape[:2]
        and key.shape[-1] == query.shape[-1]
        and query.shape[2] > 0 < key.shape[2]
        and query.dtype in (torch.float16, torch.bfloat16, torch.float32)
        and not (torch.is_grad_enabled() and any(t.requires_grad for t in (query, key, value)))
    )


def attention8(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """``softmax(Q K^T / sqrt(D)) V`` with 8-bit operands, [B, H, Lq, D] in the dtype of ``query``.

    Raises:
        ValueError: inputs that the kernel does not take.
    """
    if not attention8_fits(query, key, value):
        raise ValueError(
            f"8-bit attention takes [B, H, L, D] with D of {WIDTHS} on an NVIDIA GPU with Triton; given are "
            f"{tuple(query.shape)} and {tuple(key.shape)} of {query.dtype} on {query.device}"
        )
    batch, heads, queries, width = query.shape
    keys, float8 = key.shape[2], takes_float8(query.device)
    factor = math.log2(math.e) / math.sqrt(width)
    q, q_scale = _rows(query)
    k, k_scale = _rows(key.float() - key.float().mean(2, keepdim=True))
    pad = -keys % BLOCK
    k = torch.nn.functional.pad(k, (0, 0, 0, pad))
    k_scale = torch.nn.functional.pad(k_scale, (0, pad))
    v, v_scale = _channels(value, pad, float8)
    run = _operator if traced(query) else _launch
    out: Tensor = run(
        q.reshape(-1, width), k.reshape(-1, width), v, (q_scale * factor).reshape(-1), k_scale.reshape(-1),
        v_scale.reshape(-1), batch * heads, keys, query.dtype,
    )  # fmt: skip
    return out.view(batch, heads, queries, width)


def takes_float8(device: torch.device) -> bool:
    """Whether the GPU multiplies float8."""
    return device.type == "cuda" and capability(device) >= (8, 9)


def _rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """int8 of [..., L, D] and what a step of each row is, [..., L]."""
    wide = x.float()
    step = wide.abs().amax(-1, keepdim=True).clamp(min=1e-12) / 127
    return (wide / step).round().to(torch.int8), step.squeeze(-1)


def _channels(value: Tensor, pad: int, float8: bool) -> tuple[Tensor, Tensor]:
    """Values as the kernel reads them, and a factor for each channel of each head."""
    batch, heads, _, width = value.shape
    wide = torch.nn.functional.pad(value, (0, 0, 0, pad))
    if not float8:
        return wide.reshape(-1, width).contiguous(), value.new_ones(batch, heads, width, dtype=torch.float32)
    step = value.float().abs().amax(2).clamp(min=1e-12) / FLOAT8_TOP
    scaled = (wide.float() / step[:, :, None]).to(torch.float8_e4m3fn)
    return scaled.transpose(2, 3).contiguous().view(-1, wide.shape[2]), step


def _launch(
    q: Tensor, k: Tensor, v: Tensor, q_scale: Tensor, k_scale: Tensor, v_scale: Tensor, heads: int, keys: int,
    dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    from qvgen.packed.attention8_kernels import attend

    width, queries, padded = q.shape[1], len(q) // heads, len(k) // heads
    out = torch.empty((len(q), width), dtype=dtype, device=q.device)
    float8, tma = v.dtype == torch.float8_e4m3fn, copy_engine(q.device)
    rows, block = (128, BLOCK) if not INTERPRETED else (16, BLOCK)
    operands: tuple[object, ...] = (q, k, v)
    if tma:
        from triton.tools.tensor_descriptor import TensorDescriptor

        boxes = ([rows, width], [block, width], [width, block] if float8 else [block, width])
        operands = tuple(
            TensorDescriptor(t, list(t.shape), list(t.stride()), box)
            for t, box in zip((q, k, v), boxes, strict=True)
        )
    with torch.cuda.device_of(q):
        attend[(-(-queries // rows), heads)](
            *operands, out, q_scale, k_scale, v_scale, queries, keys, padded, heads,
            WIDTH=width, BM=rows, BN=block, TMA=tma, FLOAT8=float8, INTERPRETED=INTERPRETED,
            num_warps=8, num_stages=2,
        )  # fmt: skip
    return out


def _shape(
    q: Tensor, k: Tensor, v: Tensor, q_scale: Tensor, k_scale: Tensor, v_scale: Tensor, heads: int, keys: int,
    dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    return torch.empty(q.shape, dtype=dtype, device=q.device)


_operator = torch.library.custom_op(
    "qvgen::attention8",
    _launch,
    mutates_args=(),
    schema="(Tensor q, Tensor k, Tensor v, Tensor q_scale, Tensor k_scale, Tensor v_scale, int heads,"
    " int keys, ScalarType dtype) -> Tensor",
)
_operator.register_fake(_shape)
