"""``generate.py`` and ``throughput.py`` run from end to end in small; what they count is right."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from benchmarks.generate import main
from benchmarks.generate_parts import made, one_video
from benchmarks.random_pipelines import MODELS, RandomSource, open_model
from benchmarks.throughput import rate
from evalharness.machine.costs import expert_bytes
from qvgen.packed.convert import packed_layers

CPU = torch.device("cpu")


def test_generation(tmp_path: Path) -> None:
    path = tmp_path / "g.json"
    some = ["--parts", "wan_1_3b,wan_14b", "--runs", "packed:phases,bf16:resident", "--steps", "1"]
    assert main(["--tiny", "--output", str(path), *some]) == 0
    parts = json.loads(path.read_text())["parts"]
    assert parts["wan_1_3b"]["skipped"] == {}
    assert parts["wan_14b"]["skipped"] == {"bf16:resident": "only denoising is measured"}
    assert len(parts["wan_1_3b"]["runs"]) == 2
    for run in parts["wan_1_3b"]["runs"].values():
        assert list(run["phases"]) == ["text", "denoise", "decode", "write"]
        assert run["latents_are_finite"]
        assert set(run["predicted_gb"]) == {"text", "denoise", "decode"}


@pytest.mark.parametrize("name", ["cog_2b", "wan_1_3b"])
def test_parts_are_of_the_published_sizes(name: str) -> None:
    """Text encoder and decoder, on the meta device."""
    spec = MODELS[name].spec
    source = RandomSource(spec, torch.device("meta"), False)
    encoder, vae = source._text_encoder(0, torch.bfloat16), source._vae(torch.bfloat16)
    assert sum(p.numel() for p in encoder.parameters()) == spec.text_parameters
    assert sum(p.numel() for p in vae.parameters()) == spec.decoder_parameters


def test_a_transformer_drawn_again_is_the_same() -> None:
    loaded = open_model("wan_1_3b", CPU, True, memory="phases", steps=1)
    first = loaded.take_transformer()
    again = loaded.transformer
    assert again is not first
    for a, b in zip(first.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)


def test_every_execution_makes_a_video() -> None:
    loaded = open_model("cog_2b", CPU, True, memory="phases", steps=1)
    for execution in ("packed", "bf16", "fake"):
        module = made(loaded, execution, CPU)
        assert bool(list(packed_layers(module))) == (execution == "packed")
        found = one_video(loaded, module, "phases", decode=execution == "packed")
        assert ("decode" in found["phases"]) == (execution == "packed")
        assert (found["executed_as"] is None) == (execution != "packed")


def test_predicted_bytes_of_a_quantized_transformer() -> None:
    """Of a model whose sizes are the spec's: two blocks of full width, counted tensor by tensor."""
    from benchmarks.full_models import MODELS as FULL
    from benchmarks.full_models import Full, packed_model

    cls, full = MODELS["wan_1_3b"], FULL["wan_1_3b"]
    shape = cls.spec.shape
    assert shape is not None
    two = Full(full.kind, {**full.options, "num_layers": 2}, full.latent, full.text)
    model = packed_model(two, (4, 4), CPU, False)
    # Clips of 50 timesteps are this benchmark's; the prediction is of quantizers without.
    clips = sum(t.numel() * 4 for n, t in model.named_buffers() if n.rpartition(".")[2] in ("lower", "upper"))
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    # On a CPU codes are kept a second time, a byte each.
    held = (
        sum(t.numel() * t.element_size() for n, t in tensors.items() if not n.endswith(".expanded")) - clips
    )
    with torch.device("meta"):
        import diffusers

        numbers = sum(p.numel() for p in diffusers.WanTransformer3DModel(**two.options).parameters())
    spec = dataclasses.replace(cls.spec, shape=dataclasses.replace(shape, layers=2, parameters=numbers))
    assert expert_bytes(spec, "packed", 4) == pytest.approx(
        held, rel=0.07
    )  # embedders in float32 weigh more in two blocks
    assert expert_bytes(spec, "bf16", 4) == 2 * numbers


def test_the_rate_leaves_out_loading_and_the_end() -> None:
    """Two workers, a video every four seconds each; one begins 30 s late, both end when none is left."""
    assert rate([10.0 + 2 * n for n in range(30)], 1) == pytest.approx(30)
    late = sorted([10.0 + 4 * n for n in range(20)] + [40.0 + 4 * n for n in range(12)])
    assert rate(late, 2) == pytest.approx(30, rel=0.05)
    assert rate([10.0 + 4 * n for n in range(12)], 1) == pytest.approx(15)
