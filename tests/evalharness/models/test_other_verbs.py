"""The verbs beside ``run`` on a tiny pipeline of each class: its data, a training on them, its outlook."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from evalharness.cli.main import main
from evalharness.data.frames import Bucket, read_clip
from evalharness.data.manifest import read_manifest
from evalharness.data.sources import read_sources
from evalharness.modeloptions import ModelOptions, build_model
from evalharness.registry import Registry
from evalharness.video import encode_video

KINDS = ["cogvideox-2b", "cogvideox1.5", "wan2.1", "wan2.2-pair"]


@pytest.mark.parametrize("kind", KINDS)
def test_data_training_and_doctor(
    kind: str,
    flags: Callable[..., list[str]],
    run: Callable[..., list[str]],
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Latents are those of the loaded model's own encoder, and a training takes them."""
    Path("clips").mkdir()
    for number in range(3):
        noise = np.random.default_rng(number).integers(0, 255, (20, 40, 40, 3), np.uint8)
        Path(f"clips/{number}.mp4").write_bytes(encode_video(noise, 16))
        Path(f"clips/{number}.txt").write_text(f"the boat {number}")
    given = flags(kind)
    bucket = "9x32x32" if "cog" in kind else "5x32x32"
    assert main(["data", "clips", *given, "--out", "data", "--bucket", bucket]) == 0, capfd.readouterr().err
    [shard] = read_manifest(Path("data"))["shards"]
    stored = load_file(f"data/{shard['file']}")
    options = ModelOptions(weights=given[3], generation=json.loads(given[5]))
    model = build_model(Registry(), given[1], options)
    loaded = model.load("cpu")
    for row, clip in enumerate(read_sources(Path("clips"))):
        _, frames = read_clip(clip, model.settings.fps, [Bucket.parse(bucket)])
        video = torch.from_numpy(frames).permute(3, 0, 1, 2)[None].float() / 127.5 - 1
        with loaded.encoding():
            assert torch.equal(stored["latents"][row], loaded.encode_video(video)[0].half())
        assert torch.equal(stored["text"][row], loaded.embed([clip.caption])[0].half())
    recipe = json.dumps({"kd-qat": {"recipe": {"steps": 2, "batch_size": 2}}})
    trained = ["--methods", "kd-qat", "--bits", "8", "--method-options", recipe]
    run(kind, "--no-profile", "--data", "data", *trained)
    log = Path("out/cells/kd-qat-w8a8-s0/train.jsonl").read_text().splitlines()
    assert json.loads(log[-1])["loss"] > 0
    assert main(["doctor", *given[:4], "--protocol", "smoke"]) == 0
    assert "weights at" in capfd.readouterr().out
