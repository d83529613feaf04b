"""Memory of the host that a training pins for the GPU: blocks of torch's allocator, not bytes of tensors.

The rule is torch's (``aten/src/ATen/core/CachingHostAllocator.h``, ``allocate``): a block has the next power
of two of the bytes asked for, and is neither split nor shared. Of the settings in ``PYTORCH_ALLOC_CONF``
``pinned_use_background_threads`` and ``pinned_use_cuda_host_register`` change who pins a block, not its
size. ``pinned_max_round_threshold_mb`` and ``pinned_max_cached_size_mb`` end the rounding above a size; the
project sets neither, and where a user does, less is taken than is said here.

FSDP2 pins each parameter's shard by itself (``_fsdp_param.py``, ``_init_sharded_param``): rows are divided
and padded to the largest share, so that every process takes the same. What ``qvgen.training.pinned`` pins
lies in chunks of a power of two, and fills them.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Sequence
from typing import Any

from evalharness.models.video.spec import ModelSpec

__all__ = ["block_bytes", "chunks_bytes", "shard_bytes", "sharded_teacher", "training_host_memory"]

_CHUNK = 1 << 30
# The ends of chunks that no tensor fits: at most, of each full-size model's tensors (a test packs them).
_HOLES = 1.05


def training_host_memory(spec: ModelSpec, *, gpus: int, teacher_on_host: bool, offload: float) -> float:
    """Bytes that one process of a training keeps on the host: moments that rest there, and the teacher."""
    assert spec.shape is not None, f"model {spec.name} has no known size"
    numbers = float(spec.experts * spec.shape.parameters) / gpus
    teacher = 0.0
    if teacher_on_host:
        teacher = chunks_bytes(2.0 * numbers) if gpus == 1 else sharded_teacher(spec, gpus)
    return chunks_bytes(8.0 * offload * numbers) + teacher


def chunks_bytes(size: float) -> float:
    """Of tensors of ``size`` bytes in ``qvgen.training.pinned``'s chunks: its holes, and a last one."""
    return _HOLES * size + _CHUNK if size else 0.0


def block_bytes(size: int) -> int:
    """What torch's allocator pins for one tensor."""
    return 1 << (size - 1).bit_length() if size else 0


def shard_bytes(shape: Sequence[int], processes: int, number_bytes: int) -> int:
    """What FSDP2 asks for a parameter's shard: of the process with the most rows, whoever asks."""
    return -(-shape[0] // processes) * math.prod(shape[1:]) * number_bytes


def sharded_teacher(spec: ModelSpec, processes: int) -> float:
    """What each process pins of a bfloat16 teacher that FSDP2 shards and keeps on the host.

    Float32 is what diffusers keeps in it whatever is asked for.
    """
    assert spec.shape is not None
    parameters = _parameters(spec.transformer, json.dumps(spec.shape.config, sort_keys=True))
    return float(
        spec.experts
        * sum(block_bytes(shard_bytes(shape, processes, number_bytes)) for shape, number_bytes in parameters)
    )


@functools.cache
def _parameters(kind: str, config: str) -> tuple[tuple[tuple[int, ...], int], ...]:
    """Shape and bytes of a number, of each parameter of a teacher."""
    import diffusers
    import torch

    with torch.device("meta"):
        module: Any = getattr(diffusers, kind)(**json.loads(config))
    wide = set(module._keep_in_fp32_modules or ())
    return tuple(
        (tuple(parameter.shape), 4 if wide & set(name.split(".")) else 2)
        for name, parameter in module.named_parameters()
    )
