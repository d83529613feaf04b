"""A whole training step of a full-size CogVideoX-2B with random weights."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.measuring import WARMUP, Deadline, elapsed_ms, enqueue_ms, peak_mb, ratio, summary, unfused
from qvgen.api import quantize_
from qvgen.config import QuantConfig, QVGenConfig
from qvgen.training.checkpointing import set_gradient_checkpointing
from qvgen.training.optim import build_optimizer
from qvgen.training.recipe import TrainRecipe
from qvgen.training.step import TrainStep

COGVIDEOX_2B: dict[str, Any] = {
    "num_attention_heads": 30, "attention_head_dim": 64, "in_channels": 16, "out_channels": 16,
    "num_layers": 30, "time_embed_dim": 512, "text_embed_dim": 4096, "max_text_seq_length": 226,
    "sample_width": 90, "sample_height": 60, "sample_frames": 49, "patch_size": 2,
    "temporal_compression_ratio": 4,
}  # fmt: skip
TINY: dict[str, Any] = COGVIDEOX_2B | {
    "num_attention_heads": 2, "attention_head_dim": 16, "in_channels": 4, "out_channels": 4,
    "num_layers": 2, "time_embed_dim": 16, "text_embed_dim": 24, "max_text_seq_length": 4,
    "sample_width": 6, "sample_height": 6, "sample_frames": 5,
}  # fmt: skip
RECIPE = TrainRecipe(batch_size=1, precision="bf16", gradient_checkpointing=True)
QAT = QVGenConfig(
    quant=QuantConfig(w_bits=4, a_bits=4, learn_clip=True, range_init="minmax"), rank=32, phi_init="random"
)


class Batch(NamedTuple):
    """One ``TrainBatch``; its target is not looked at, the teacher's output is."""

    inputs: dict[str, Any]
    target: Tensor


class Context:
    """The little of a ``TrainContext`` that one step asks for."""

    seed = 0
    skip_layers = ()

    def __init__(self, device: torch.device, teacher: nn.Module) -> None:
        self.device = device
        self._teacher = teacher

    def teacher(self) -> nn.Module:
        return self._teacher

    def batches(self, batch_size: int) -> Iterator[Batch]:
        raise AssertionError("steps are given their batch")

    def predict(self, transformer: nn.Module, batch: Batch) -> Tensor:
        out: Tensor = transformer(**batch.inputs, return_dict=False)[0]
        return out

    def log(self, record: Mapping[str, float | int | str]) -> None: ...

    def track(self, steps: range, what: str) -> Iterator[int]:
        return iter(steps)


def transformer(device: torch.device, tiny: bool, seed: int = 0) -> nn.Module:
    """Random weights, float32."""
    from diffusers import CogVideoXTransformer3DModel

    torch.manual_seed(seed)
    with torch.device(device):
        model: nn.Module = CogVideoXTransformer3DModel(**(TINY if tiny else COGVIDEOX_2B))
    return model.to(device)


def random_batch(device: torch.device, tiny: bool, samples: int, frames: int) -> Batch:
    """Latents of ``frames`` frames at the model's size, text embeddings, timesteps."""
    config = TINY if tiny else COGVIDEOX_2B
    size = (config["in_channels"], config["sample_height"], config["sample_width"])
    g = torch.Generator(device).manual_seed(0)
    latents = torch.randn(samples, frames, *size, device=device, generator=g)
    text = torch.randn(
        samples, config["max_text_seq_length"], config["text_embed_dim"], device=device, generator=g
    )
    timestep = torch.randint(0, 1000, (samples,), device=device, generator=g)
    inputs = {"hidden_states": latents, "encoder_hidden_states": text, "timestep": timestep}
    return Batch(inputs, latents)


def measure_step(
    device: torch.device, tiny: bool, repeats: int, limit_s: float,
    *, samples: int, frames: int, compiled: bool, attention: str,
) -> dict[str, Any]:  # fmt: skip
    """Teacher without gradients, student with block checkpointing, clipping, AdamW: ``TrainStep``.

    One student at a time is in memory. The plain one is measured before and after the quantized
    one, so that both sides see the same clock rates. After the deadline no further side begins.
    """
    deadline = Deadline(limit_s)
    teacher = transformer(device, tiny).to(torch.bfloat16).eval().requires_grad_(False)
    if compiled:
        compile_blocks_(teacher)
    batch = random_batch(device, tiny, samples, frames)
    sides: dict[str, dict[str, Any]] = {}
    for name in ("plain", "fused", "plain again", "unfused"):
        if sides and deadline.passed:
            break
        sides[name] = _side(name, teacher, batch, device, tiny, repeats, compiled, attention)
        print(f"  step, {name}: {sides[name]['median_ms']:.0f} ms", flush=True)
        _free(device)
    plain = sides["plain"]["median_ms"]
    if "plain again" in sides:
        plain = (plain + sides["plain again"]["median_ms"]) / 2
    fused: Mapping[str, Any] = sides.get("fused", {})
    return {
        "ratios": {
            "qat_to_plain_time": ratio(fused.get("median_ms"), plain),
            "qat_to_plain_peak_memory": ratio(fused.get("peak_mb"), sides["plain"]["peak_mb"]),
            "unfused_to_plain_time": ratio(sides.get("unfused", {}).get("median_ms"), plain),
            "plain_again_to_plain_time": ratio(
                sides.get("plain again", {}).get("median_ms"), sides["plain"]["median_ms"]
            ),
        },
        "samples": samples,
        "latent_frames": frames,
        "compiled_blocks": compiled,
        "attention": attention,
        "sides": sides,
    }


def _side(
    name: str,
    teacher: nn.Module,
    batch: Batch,
    device: torch.device,
    tiny: bool,
    repeats: int,
    compiled: bool,
    attention: str,
) -> dict[str, Any]:
    # Not the teacher's weights: gradients of zero would make a GPU faster than real ones do.
    student = transformer(device, tiny, seed=1).train()
    if not name.startswith("plain"):
        quantize_(student, QAT)
    set_gradient_checkpointing(student, True)
    if compiled:
        compile_blocks_(student)
    context = Context(device, teacher)
    step = TrainStep(student, teacher, build_optimizer(student, RECIPE), RECIPE, context)
    losses = []

    def once() -> None:
        with attention_backend(attention):
            losses.append(step([batch]).loss)

    with unfused(name == "unfused"):
        for _ in range(WARMUP):
            once()
        peak = peak_mb(once, device)
        times = [elapsed_ms(once, device) for _ in range(2 if name == "unfused" else repeats)]
        host = enqueue_ms(once, device)
    parameters = sum(p.numel() for p in student.parameters())
    return {
        **summary(times),
        "peak_mb": peak,
        "host_ms": host,
        "parameters": parameters,
        "losses": [float(x) for x in losses],
    }


def attention_backend(name: str) -> AbstractContextManager[None]:
    """``cudnn`` puts its kernel first, which is the faster one on Hopper; ``default`` leaves it to torch."""
    if name == "default":
        return nullcontext()
    from torch.nn.attention import SDPBackend, sdpa_kernel

    order = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]
    chosen: AbstractContextManager[None] = sdpa_kernel(order, set_priority=True)
    return chosen


def compile_blocks_(model: nn.Module) -> None:
    """Each transformer block for itself: blocks are alike, so one is compiled."""
    blocks = model.get_submodule("transformer_blocks")
    for block in blocks.children():
        compile_it: Callable[..., None] = block.compile
        compile_it(dynamic=False)


def _free(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
