"""Attention with 8-bit operands: scores from int8, values as float8. Triton's kernel; see ``attention8``."""

from __future__ import annotations

import triton
import triton.language as tl

from qvgen.fused.token_kernels import loop_bound

FULL = tl.constexpr(256.0)  # what a probability of 1 is as float8: small ones keep three bits then


@triton.jit
def _tile(operand, row, rows, width: tl.constexpr, TMA: tl.constexpr, BLOCK: tl.constexpr):
    """[BLOCK, width] of a row-major matrix of ``rows`` rows from ``row`` on; zeros behind it."""
    if TMA:
        return operand.load([row, 0])
    else:
        at = row + tl.arange(0, BLOCK)
        place = operand + at.to(tl.int64)[:, None] * width + tl.arange(0, width)[None, :]
        return tl.load(place, mask=(at < rows)[:, None], other=0.0)


@triton.jit
def attend(
    q, k, v, out_ptr, q_scale_ptr, k_scale_ptr, v_scale_ptr, queries, keys, padded, heads,
    WIDTH: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, TMA: tl.constexpr, FLOAT8: tl.constexpr,
    INTERPRETED: tl.constexpr,
):  # fmt: skip
    """``softmax(q k^T) v`` of one head and ``BM`` queries, without a mask.

    ``q`` [heads * queries, WIDTH] and ``k`` [heads * padded, WIDTH] are int8 with a scale a row, those of
    ``q`` times log2(e) / sqrt(WIDTH); ``v`` [heads * padded, WIDTH], or its transpose for each head
    [heads * WIDTH, padded] where ``FLOAT8`` says so, has a scale a channel of a head. Rows of ``k`` and ``v``
    from ``keys`` to ``padded`` are zeros.
    """
    head = tl.program_id(1)
    first = tl.program_id(0) * BM
    at_query = first + tl.arange(0, BM)
    valid = at_query < queries
    channel = tl.arange(0, WIDTH)
    query_rows = head.to(tl.int64) * queries
    left = _tile(q, (query_rows + first).to(tl.int32), heads * queries, WIDTH, TMA, BM)
    left_scale = tl.load(q_scale_ptr + query_rows + at_query, mask=valid, other=0.0)
    top = tl.full((BM,), -1e30, tl.float32)
    total = tl.zeros((BM,), tl.float32)
    acc = tl.zeros((BM, WIDTH), tl.float32)
    key_rows = head * padded
    for start in range(0, loop_bound(padded, INTERPRETED), BN):
        at_key = start + tl.arange(0, BN)
        right = _tile(k, key_rows + start, heads * padded, WIDTH, TMA, BN)
        right_scale = tl.load(k_scale_ptr + key_rows + at_key)
        scores = tl.dot(left, right.T, out_dtype=tl.int32).to(tl.float32) * left_scale[:, None]
        scores = tl.where((at_key < keys)[None, :], scores * right_scale[None, :], -1e30)
        higher = tl.maximum(top, tl.max(scores, 1))
        share = tl.exp2(scores - higher[:, None])
        shrunk = tl.exp2(top - higher)
        total = total * shrunk + tl.sum(share, 1)
        acc = acc * shrunk[:, None]
        if FLOAT8:
            if TMA:
                values = v.load([head * WIDTH, start])
            else:
                place = v + (head.to(tl.int64) * WIDTH + channel)[:, None] * padded + at_key[None, :]
                values = tl.load(place)
            acc = tl.dot((share * FULL).to(tl.float8e4nv), values.T, acc)
        else:
            values = _tile(v, key_rows + start, heads * padded, WIDTH, TMA, BN)
            acc = tl.dot((share * FULL).to(values.dtype), values, acc)
        top = higher
    v_scale = tl.load(v_scale_ptr + head * WIDTH + channel)
    result = acc / (total * FULL)[:, None] * v_scale[None, :]
    target = out_ptr + (query_rows + at_query)[:, None] * WIDTH + channel[None, :]
    tl.store(target, result.to(out_ptr.dtype.element_ty), mask=valid[:, None])
