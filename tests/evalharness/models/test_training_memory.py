"""What a training step holds, counted tensor by tensor without data: blocks of full width and full clips."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional

from evalharness.machine.costs import training_memory
from evalharness.modeloptions import ModelOptions, build_model
from evalharness.registry import Registry
from qvgen.api import quantize_
from qvgen.config import QuantConfig
from qvgen.fused import switch
from tests.evalharness.models.full_size import Alive

FRAMES, LAYERS = 17, 2


class Attention(torch.autograd.Function):
    """As a GPU's kernels: inputs, output and a number a row are kept, no matrix of pairs is made."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = torch.empty_like(q)
        ctx.save_for_backward(q, k, v, out, torch.empty(q.shape[:-1]))
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        return tuple(torch.empty_like(tensor) for tensor in ctx.saved_tensors[:3])


@pytest.fixture
def as_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA's autocast has LayerNorm in float32, the CPU's has not; and its fake quantizers are one kernel."""
    plain = functional.layer_norm

    def layer_norm(x: Tensor, shape: Any, *rest: Any, **named: Any) -> Tensor:
        out: Tensor = plain(x.float(), shape, *rest, **named)
        return out

    def attention(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Tensor:
        out: Tensor = Attention.apply(query.bfloat16(), key.bfloat16(), value.bfloat16())  # type: ignore[no-untyped-call]
        return out

    monkeypatch.setattr(functional, "layer_norm", layer_norm)
    monkeypatch.setattr(functional, "scaled_dot_product_attention", attention)
    monkeypatch.setattr(switch, "AVAILABLE", True)
    monkeypatch.setattr(switch, "INTERPRETED", True)


def without_data_(model: nn.Module) -> None:
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is not None:
                    empty = torch.empty(tensor.shape, dtype=tensor.dtype)
                    tensors[name] = nn.Parameter(empty) if isinstance(tensor, nn.Parameter) else empty


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cogvideox-2b", "wan2.1-1.3b"])
def test_a_step_holds_what_is_predicted(name: str, request: pytest.FixtureRequest) -> None:
    """Gradients and activations of two blocks with checkpointing: weights and moments are no matter here."""
    import diffusers

    built = build_model(Registry(), name, ModelOptions())
    shape = dataclasses.replace(built.spec.shape, layers=LAYERS)
    width = 720 if shape.joint_text else 832
    settings = dataclasses.replace(built.settings, frames=FRAMES, height=480, width=width)
    model = getattr(diffusers, built.spec.transformer)(**{**shape.config, "num_layers": LAYERS})
    quantize_(model, QuantConfig(w_bits=4, a_bits=4, learn_clip=True, range_init="minmax"))
    model.train().requires_grad_(True).enable_gradient_checkpointing()
    request.getfixturevalue("as_on_cuda")
    latent = ((FRAMES - 1) // 4 + 1, 480 // 8, width // 8)
    size = (latent[0], 16, *latent[1:]) if shape.joint_text else (16, *latent)
    with FakeTensorMode(allow_non_fake_inputs=True):
        without_data_(model)
        known = {t.untyped_storage()._cdata for t in (*model.parameters(), *model.buffers())}
        latents, target = torch.empty(1, *size, dtype=torch.bfloat16), torch.empty(1, *size)
        text = torch.empty(1, shape.text_tokens, 4096, dtype=torch.bfloat16)
        time = torch.zeros(1, dtype=torch.long)
        with Alive(known) as held:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                out = model(latents, encoder_hidden_states=text, timestep=time, return_dict=False)[0]
            functional.mse_loss(out.float(), target).backward()
    spec = dataclasses.replace(built.spec, shape=shape)
    found = training_memory(spec, settings, batch_size=1, gpus=1, checkpointing=True, teacher=False)
    block = 4 * built.spec.shape.parameters / built.spec.shape.layers
    # The last block's gradients are there when the first one works, whose weights are held in other forms.
    assert held.most == pytest.approx(found["activations"] + 2 * block, rel=0.1)
