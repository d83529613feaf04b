"""The bundled model behind the harness's contract."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from evalharness.api import Bits, TrainBatch
from evalharness.models import tinyworld
from evalharness.models.tinyworld import PIPELINE, LoadedTinyWorld, TinyWorld

PROMPTS = ["a red star moving left over a snowy field", "a blue box spinning over a desert"]


@pytest.fixture(scope="module")
def model() -> LoadedTinyWorld:
    torch.set_num_threads(1)
    loaded = TinyWorld().load("cpu")
    loaded.training_clips = 6
    return loaded


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two steps a video."""
    monkeypatch.setattr(tinyworld, "SETTINGS", replace(tinyworld.SETTINGS, steps=2))


def first_batches(model: LoadedTinyWorld, seed: int, count: int = 2) -> list[TrainBatch]:
    return list(islice(model.batches(batch_size=3, seed=seed), count))


def test_the_pipeline_is_the_real_family_and_small(model: LoadedTinyWorld) -> None:
    kinds = {name: type(part).__name__ for name, part in model.pipeline.components.items()}
    assert kinds == {
        "tokenizer": "T5Tokenizer",
        "text_encoder": "T5EncoderModel",
        "vae": "AutoencoderKLCogVideoX",
        "transformer": "CogVideoXTransformer3DModel",
        "scheduler": "CogVideoXDDIMScheduler",
    }
    assert 3e6 <= sum(p.numel() for p in model.transformer.parameters()) <= 6e6
    assert all(p.dtype == torch.float32 for p in model.transformer.parameters())
    assert sum(p.stat().st_size for p in PIPELINE.rglob("*")) <= 16e6


def test_skip_presets_name_real_linears(model: LoadedTinyWorld) -> None:
    linears = {name for name, part in model.transformer.named_modules() if isinstance(part, nn.Linear)}
    std = set(model.skip_layers("std"))
    assert model.skip_layers("none") == ()
    assert std < linears
    inner = re.compile(r"transformer_blocks\.\d+\.(attn1|ff)\.")
    assert {name for name in linears if inner.match(name)} == linears - std
    assert "proj_out" in std
    with pytest.raises(ValueError, match=r"'all'.*none and std"):
        model.skip_layers("all")


@pytest.mark.usefixtures("hasty")
def test_a_video_depends_on_its_prompt_and_seed_alone(model: LoadedTinyWorld) -> None:
    both = model.generate(PROMPTS, [5, 6])
    assert both.shape == (2, 17, 48, 48, 3)
    assert both.dtype == np.uint8
    turned = model.generate(PROMPTS[::-1], [6, 5])
    assert np.array_equal(turned[::-1], both)
    torch.manual_seed(99)
    np.random.seed(99)
    alone = model.generate(PROMPTS[:1], [5])[0]
    assert np.array_equal(model.generate(PROMPTS[:1], [5])[0], alone)
    # Another batch size may round the last bit of a sum elsewhere.
    assert np.abs(alone.astype(int) - both[0]).max() <= 2
    assert not np.array_equal(model.generate(PROMPTS[:1], [6])[0], alone)
    assert not np.array_equal(model.generate(PROMPTS[1:], [5])[0], alone)


def test_batches_are_a_pure_function_of_the_seed(model: LoadedTinyWorld) -> None:
    one, other = first_batches(model, 1), first_batches(model, 2)
    again = first_batches(model, 1)
    for a, b in zip(one, again, strict=True):
        assert torch.equal(a.target, b.target)
        for key in ("hidden_states", "encoder_hidden_states", "timestep"):
            assert torch.equal(a.inputs[key], b.inputs[key]), key
    assert not torch.equal(one[0].target, other[0].target)
    assert not torch.equal(one[0].target, one[1].target)


def test_the_model_knows_its_batches(model: LoadedTinyWorld) -> None:
    """Its prediction is close to the target, so inputs and target are those it was trained on."""
    with torch.no_grad():
        batches = first_batches(model, 3, 4)
        error = np.mean([(model.predict(model.transformer, b) - b.target).square().mean() for b in batches])
        turned = np.mean([(model.predict(model.transformer, b) + b.target).square().mean() for b in batches])
    scale = np.mean([b.target.square().mean() for b in batches])
    assert error < 0.35 * scale
    assert turned > 2 * scale


def test_step_inputs_run_at_generation_size(model: LoadedTinyWorld) -> None:
    inputs = model.step_inputs()
    with torch.no_grad():
        output = model.transformer(**inputs)[0]
    assert output.shape == inputs["hidden_states"].shape
    assert output.shape[:2] == (2, 5)


def test_the_fingerprint_is_of_names_and_bytes(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(PIPELINE, tmp_path / "pipeline"))
    whole = TinyWorld().fingerprint()
    assert re.fullmatch("[0-9a-f]{64}", whole)
    assert TinyWorld(folder).fingerprint() == whole
    path = folder / "vae" / "diffusion_pytorch_model.safetensors"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert TinyWorld(folder).fingerprint() != whole
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert TinyWorld(folder).fingerprint() == whole
    (folder / "vae" / "config.json").rename(folder / "config.json")
    assert TinyWorld(folder).fingerprint() != whole


def test_missing_weights_are_told_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="reinstall the package, or rebuild"):
        TinyWorld(tmp_path / "nothing").fingerprint()


def test_no_checkpoint_for_an_unpublished_cell() -> None:
    assert TinyWorld().checkpoint("nosuch", Bits(3, 3)) is None
