"""``generate.py`` and ``throughput.py`` run from end to end in small; what they count is right."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks import throughput
from benchmarks.generate import main
from benchmarks.generate_parts import by_probe, made, one_video
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
    assert list(parts["wan_1_3b"]["decodes"]) == ["9x32x32"]
    assert list(parts["wan_14b"]["runs"]["packed:phases"]["phases"]) == ["denoise"]
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


def test_a_run_that_fails_or_has_no_time_costs_the_others_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmarks import generate_parts

    path, whole = tmp_path / "g.json", generate_parts.one_video

    def failing(
        loaded: Any, module: Any, preset: str, entry: dict[str, Any], *args: Any, **kwargs: Any
    ) -> None:
        whole(loaded, module, preset, entry, *args, **kwargs)
        if preset == "blocks":
            raise RuntimeError("out of memory")

    monkeypatch.setattr(generate_parts, "one_video", failing)
    some = ["--parts", "wan_1_3b", "--runs", "packed:blocks,packed:phases", "--steps", "1"]
    assert main(["--tiny", "--output", str(path), *some]) == 0
    part = json.loads(path.read_text())["parts"]["wan_1_3b"]
    assert part["skipped"] == {"packed:blocks": "RuntimeError: out of memory"}
    assert set(part["ratios"]["packed:blocks"]) == {"text", "denoise", "decode"}  # what it did is kept
    assert "seconds" in part["runs"]["packed:phases"] and "error" not in part["runs"]["packed:phases"]
    assert main(["--tiny", "--output", str(path), *some, "--wan-1-3b-s", "0"]) == 0
    part = json.loads(path.read_text())["parts"]["wan_1_3b"]
    assert part["runs"] == {} and "s were left" in part["skipped"]["packed:phases"]


def test_decodes_of_other_sizes_predict_the_decode() -> None:
    """By hand: 15,000 bytes a pixel at a tile's size, 21,000 at a larger one; Wan's decoder is float32."""
    loaded = open_model("wan_1_3b", CPU, True, memory="phases", steps=1)
    loaded.settings = dataclasses.replace(loaded.settings, frames=81, height=480, width=832)
    assert by_probe(loaded, {"9x32x32": {"allocated_gb": None}}, "bf16", "phases") is None
    decodes = {
        "33x240x416": {"pixels": 99_840, "bytes_for_a_pixel": 15_000},
        "33x480x832": {"pixels": 399_360, "bytes_for_a_pixel": 21_000},
    }
    frames, decoder = 3 * 81 * 480 * 832 * 4, 126_892_531 * 4
    alone = by_probe(loaded, decodes, "packed", "phases")
    assert alone == pytest.approx(decoder + frames + 256 * 256 * 15_000)
    beside = expert_bytes(loaded.spec, "packed", 4) + 5_680_910_336 * 2
    whole = by_probe(loaded, decodes, "packed", "resident")
    assert whole == pytest.approx(beside + decoder + frames + 480 * 832 * 21_000)


def test_every_execution_makes_a_video() -> None:
    loaded = open_model("cog_2b", CPU, True, memory="phases", steps=1)
    for execution in ("packed", "bf16", "fake"):
        module = made(loaded, execution, CPU)
        assert bool(list(packed_layers(module))) == (execution == "packed")
        found: dict[str, Any] = {}
        phases: list[list[str]] = []
        one_video(
            loaded, module, "phases", found, decode=execution == "packed",
            told=lambda kept=found, said=phases: said.append(list(kept["phases"])),  # type: ignore[misc]
        )  # fmt: skip
        assert phases[:2] == [["text"], ["text", "denoise"]]
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
    assert rate([10.0, 14.0], 2) is None


def test_a_run_that_takes_too_long_leaves_what_it_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight videos, 60 ms between each two, then nothing: ended from outside, its rate is of those eight."""
    cell = tmp_path / "cell"
    maker = f"""
import json, os, pathlib, sys, time
cell = pathlib.Path({str(cell)!r})
cell.mkdir()
pathlib.Path(sys.argv[1], "cells").mkdir(parents=True)
pathlib.Path(sys.argv[1], "cells/bf16-s0").symlink_to(cell)
(cell / "pid").write_text(str(os.getpid()))
(cell / "samples.jsonl").write_text(8 * (json.dumps({{"status": "ok", "ms": 50.0}}) + chr(10)))
(cell / "new").mkdir()
for n in range(8):
    (cell / "new" / f"{{n}}.mp4").touch()
    os.utime(cell / "new" / f"{{n}}.mp4", (1e9 + 0.06 * n,) * 2)
(cell / "new").rename(cell / "videos")
time.sleep(600)
"""
    monkeypatch.setattr(
        throughput, "command", lambda given, folder, gpus, output: [sys.executable, "-c", maker, str(output)]
    )
    saved: list[dict[str, Any]] = []
    given = argparse.Namespace(videos=12, save=saved.append)
    # Its time is over as soon as the videos were seen, however long that takes.
    clock = SimpleNamespace(perf_counter=lambda: 9.0 * len(saved), sleep=time.sleep)
    monkeypatch.setattr(throughput, "time", clock)
    found = throughput.measured(given, tmp_path, 1, 4.0)
    with pytest.raises(ProcessLookupError):
        os.kill(int((cell / "pid").read_text()), 0)
    assert (found["ended"], found["videos"]) == (False, 8)
    assert found["videos_a_minute"] == pytest.approx(1000, rel=1e-3)
    assert found["videos_a_minute_by_workers_clocks"] == 1200
    [last] = saved
    assert last["made_at"] == pytest.approx([0.06 * n for n in range(8)], abs=0.0051)
