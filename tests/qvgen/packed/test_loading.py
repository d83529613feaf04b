"""Packed folders read tensor by tensor: the same model, damage refused by name, memory of the packed size."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from qvgen.integrations.diffusers import attach_
from qvgen.integrations.loading import load_packed
from qvgen.packed.backends import Backend
from qvgen.packed.convert import packed_layers
from qvgen.tensor_stream import stream_tensors, tensor_names
from tests.qvgen.packed.models import MODELS, finished, inputs

ROOT = Path(__file__).parents[3]
WEIGHTS = "diffusion_pytorch_model.safetensors"


def saved(folder: Path, name: str = "cog", **options: Any) -> nn.Module:
    model = attach_(finished(name, learn_clip=True, clip_buckets=4))
    model.save_pretrained(folder, **options)  # type: ignore[operator]
    return model


@pytest.mark.parametrize("shards", [False, True])
@pytest.mark.parametrize("name", ["cog", "wan"])
def test_the_same_model_as_before_and_as_diffusers_loads(name: str, shards: bool, tmp_path: Path) -> None:
    model = saved(tmp_path, name, **({"max_shard_size": "20KB"} if shards else {}))
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == shards
    loaded = load_packed(tmp_path)
    other = type(MODELS[name]()).from_pretrained(tmp_path)
    with torch.no_grad():
        wanted = model(**inputs(name))[0]
        assert torch.equal(loaded(**inputs(name))[0], wanted)
        assert torch.equal(other(**inputs(name))[0], wanted)
    assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())
    for (key, a), (_, b) in zip(loaded.state_dict().items(), other.state_dict().items(), strict=True):
        assert torch.equal(a, b) and a.dtype == b.dtype, key


def test_saved_again_it_is_the_same(tmp_path: Path) -> None:
    saved(tmp_path / "a")
    load_packed(tmp_path / "a").save_pretrained(tmp_path / "b")  # type: ignore[operator]
    a, b = (load_file(tmp_path / part / WEIGHTS) for part in "ab")
    assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_dtype_and_backend_of_ones_choice(tmp_path: Path) -> None:
    saved(tmp_path, "wan")
    model = load_packed(tmp_path, dtype=torch.bfloat16, backend="reference")
    layers = dict(packed_layers(model))
    assert {layer.executed for layer in layers.values()} == {Backend.REFERENCE}
    assert all(layer.scale.dtype == torch.float32 for layer in layers.values())
    assert model.get_parameter("proj_out.weight").dtype == torch.bfloat16
    assert model.get_parameter("blocks.0.scale_shift_table").dtype == torch.float32  # as diffusers has it


def rewrite(folder: Path, change: Any) -> None:
    tensors = load_file(folder / WEIGHTS)
    from safetensors import safe_open

    with safe_open(folder / WEIGHTS, framework="pt") as file:
        metadata = file.metadata()
    change(tensors)
    save_file(tensors, folder / WEIGHTS, metadata)


def test_damage_is_refused_by_the_tensors_name(tmp_path: Path) -> None:
    saved(tmp_path)
    name = "transformer_blocks.0.attn1.to_q.codes"
    good = (tmp_path / WEIGHTS).read_bytes()

    def flip(tensors: dict[str, Any]) -> None:
        tensors[name][3, 1] ^= 1

    for change, words in (
        (flip, f"{name} was altered or damaged"),
        (lambda t: t.pop(name), f"lacks {name}"),
        (lambda t: t.update(more=torch.zeros(2)), "surplus tensor more"),
        (lambda t: t.update({name: t[name][1:]}), rf"{name} is \(47, 32\), the model needs \(48, 32\)"),
    ):
        rewrite(tmp_path, change)
        with pytest.raises(ValueError, match=words):
            load_packed(tmp_path)
        (tmp_path / WEIGHTS).write_bytes(good)
    (tmp_path / WEIGHTS).write_bytes(good[:-40])
    with pytest.raises(
        ValueError, match=r"transformer_blocks\.\S+ does not lie within the file; was it cut off"
    ):
        load_packed(tmp_path)
    with pytest.raises(ValueError, match="does not lie within the file; was it cut off"):
        list(stream_tensors(tmp_path / WEIGHTS))
    (tmp_path / WEIGHTS).write_bytes(b"\xff" * 64)
    with pytest.raises(ValueError, match="not valid safetensors"):
        load_packed(tmp_path)


def test_what_is_no_packed_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no packed folder"):
        load_packed(tmp_path)
    MODELS["cog"]().save_pretrained(tmp_path)  # type: ignore[operator]
    with pytest.raises(ValueError, match=r"no packed folder .*quantization_config"):
        load_packed(tmp_path)
    saved(tmp_path / "packed")
    config = json.loads((tmp_path / "packed" / "config.json").read_text())
    (tmp_path / "packed" / "config.json").write_text(json.dumps({**config, "_class_name": "logging"}))
    with pytest.raises(ValueError, match="diffusers has no model 'logging'"):
        load_packed(tmp_path / "packed")


def test_streams_read_what_the_library_wrote(tmp_path: Path) -> None:
    tensors = {
        "a": torch.randn(3, 5).bfloat16(), "b": torch.arange(7), "c": torch.zeros(0, 4),
        "d": torch.tensor(2.5), "e": torch.randint(0, 256, (4, 9), dtype=torch.uint8),
        "f": torch.tensor([True, False]),
    }  # fmt: skip
    save_file(tensors, tmp_path / "x.safetensors", {"note": "1"})
    found = dict(stream_tensors(tmp_path / "x.safetensors"))
    assert found.keys() == tensors.keys() == tensor_names(tmp_path / "x.safetensors")
    for name, tensor in tensors.items():
        assert torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype


@pytest.mark.slow
def test_the_peak_is_that_of_the_packed_model(tmp_path: Path) -> None:
    """In a process of its own, by the system's high-water mark of resident memory."""
    from benchmarks.full_models import Full, packed_model

    full = Full("WanTransformer3DModel", {"num_layers": 1}, (16, 21, 60, 104), (512, 4096), {
        "num_attention_heads": 12, "num_layers": 4, "ffn_dim": 3072, "text_dim": 256, "rope_max_seq_len": 64,
    })  # fmt: skip
    attach_(packed_model(full, (4, 4), torch.device("cpu"), True)).save_pretrained(tmp_path)  # type: ignore[operator]
    script = [sys.executable, str(ROOT / "benchmarks" / "load_once.py"), str(tmp_path)]
    found = json.loads(
        subprocess.run([*script, "--backend", "reference"], capture_output=True, text=True, check=True).stdout
    )
    if found["host_peak"] is None:
        pytest.skip("the system tells no high-water mark")
    assert found["disk"] > 40e6
    assert found["tensors"] == pytest.approx(found["disk"], rel=0.02)
    assert found["host_peak"] < 1.2 * found["disk"]


def test_a_header_too_deep_to_read_is_one_line(tmp_path: Path) -> None:
    header = b'{"a": ' + b"[" * 100_000
    (tmp_path / "deep.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(ValueError, match=r"deep\.safetensors: not valid safetensors"):
        tensor_names(tmp_path / "deep.safetensors")
