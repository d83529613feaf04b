"""What a wrong folder says: one line, exit code 2, before anything is loaded."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from evalharness.cli.main import main
from evalharness.errors import UserError
from evalharness.executor import WorkerSpec
from evalharness.modeloptions import ModelOptions, build_model
from evalharness.models.video.folder import FETCH_RECORD, check_folder, fingerprint, resolve_folder
from evalharness.models.video.wan import AnyWan, Wan21Small
from evalharness.registry import Registry
from evalharness.worker import TaskRunner

Folders = Callable[[str], Path]


@pytest.fixture
def copied(folders: Folders, tmp_path: Path) -> Path:
    target = tmp_path / "copy"
    shutil.copytree(folders("wan2.1"), target)
    return target


def said(folder: Path, capfd: pytest.CaptureFixture[str], *more: str, model: str = "wan") -> str:
    capfd.readouterr()
    code = main(["run", "--model", model, "--weights", str(folder), "--protocol", "smoke", *more])
    err = capfd.readouterr().err
    assert code == 2
    [line] = [line for line in err.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in err
    return line


def test_wrong_folders(
    copied: Path, folders: Folders, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert "no such folder" in said(tmp_path / "nowhere", capfd)
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "has no model_index.json" in said(empty, capfd)
    assert "give the folder around it" in said(copied / "transformer", capfd)
    around = tmp_path / "around"
    shutil.copytree(copied, around / "inner")
    assert "did you mean" in said(around, capfd)
    (empty / "Wan2.1_VAE.pth").write_bytes(b"x")
    assert "diffusers form" in said(empty, capfd)


def test_a_worker_tells_whether_its_machine_has_the_weights_of_the_run(copied: Path) -> None:
    """Asked before it gets a task of Ray's, and before anything is loaded; who only judges needs none."""
    options = ModelOptions(weights=str(copied))

    def runner() -> TaskRunner:
        spec = WorkerSpec(
            model="wan", protocol="smoke", device="cpu", skip_layers="none", model_options=options,
            model_fingerprint=wanted,
        )  # fmt: skip
        return TaskRunner(spec)

    built: Any = Registry().get("models", "wan")(options)
    wanted = built.fingerprint()
    runner().check("generate")
    shard = next((copied / "transformer").glob("*.safetensors"))
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1  # as long as before: only its hash tells
    shard.write_bytes(data)
    runner().check("score")
    with pytest.raises(UserError, match="machine has other weights than the run"):
        runner().check("generate")
    with pytest.raises(UserError, match="machine has other weights than the run"):
        _ = runner()._session.loaded
    shard.unlink()
    with pytest.raises(UserError, match="transformer"):
        runner().check("generate")


def test_every_model_can_be_asked_for_its_weights() -> None:
    """Also one whose folder is no method of its plugin."""
    built: Any = Registry().get("models", "tinyworld")()
    spec = WorkerSpec(
        model="tinyworld", protocol="tinyworld", device="cpu", skip_layers="std",
        model_fingerprint=built.fingerprint(),
    )  # fmt: skip
    TaskRunner(spec).check("generate")
    with pytest.raises(UserError, match="other weights"):
        TaskRunner(dataclasses.replace(spec, model_fingerprint="0" * 64)).check("generate")


def test_wrong_class_and_size(copied: Path, folders: Folders, capfd: pytest.CaptureFixture[str]) -> None:
    line = said(folders("cogvideox-2b"), capfd)
    assert "holds a CogVideoXPipeline, model wan is a WanPipeline" in line
    line = said(copied, capfd, model="wan2.1-1.3b")
    assert "is 1, model wan2.1-1.3b has 30" in line or "is 2, model wan2.1-1.3b has 12" in line
    assert "--model wan --weights DIR" in line
    assert "part transformer_2 is missing" in said(copied, capfd, model="wan-pair")


def test_missing_and_cut_files(copied: Path, capfd: pytest.CaptureFixture[str]) -> None:
    weights = copied / "transformer" / "diffusion_pytorch_model.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[:-1])
    assert "truncated or no safetensors file" in said(copied, capfd)
    weights.write_bytes(b"<html>not found</html>")
    assert "truncated or no safetensors file" in said(copied, capfd)
    weights.unlink()
    assert "no safetensors file; fetch again" in said(copied, capfd)
    (copied / "transformer" / "diffusion_pytorch_model.bin").write_bytes(b"x")
    assert "a pickle, which is never read" in said(copied, capfd)
    index = {"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}
    (copied / "transformer" / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    (copied / "transformer" / "one.safetensors").write_bytes(data)
    assert "1 of 2 shards are missing (two.safetensors)" in said(copied, capfd)
    shutil.rmtree(copied / "vae")
    assert "its part vae is missing" in said(copied, capfd)
    (copied / "model_index.json").write_text("{")
    assert "not valid JSON" in said(copied, capfd)


@pytest.mark.parametrize(
    ("files", "line"),
    [
        ("tokenizer/*", "tokenizer has no tokenizer.json or spiece.model; copy"),
        ("scheduler/*", "scheduler has no scheduler_config.json; copy"),
        ("vae/config.json", "vae has no config.json; copy"),
    ],
)
def test_parts_without_their_files(
    copied: Path, files: str, line: str, capfd: pytest.CaptureFixture[str]
) -> None:
    for path in copied.glob(files):
        path.unlink()
    assert line in said(copied, capfd)


@pytest.mark.parametrize(
    ("vae", "line"),
    [
        (
            ["evil", "Evil"],
            "its part vae is a class of evil; only diffusers and transformers are loaded from",
        ),
        ([1, 2], "its part vae names no class"),
        (["diffusers"], "its part vae names no class"),
    ],
)
def test_an_index_of_other_classes(
    copied: Path, vae: list[object], line: str, capfd: pytest.CaptureFixture[str]
) -> None:
    index = copied / "model_index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), "vae": vae}))
    assert line in said(copied, capfd)


def test_shards_without_their_index(copied: Path, capfd: pytest.CaptureFixture[str]) -> None:
    whole = copied / "transformer" / "diffusion_pytorch_model.safetensors"
    whole.rename(whole.with_name("diffusion_pytorch_model-00001-of-00002.safetensors"))
    assert "is one of several, whose index (*.index.json) is missing" in said(copied, capfd)


def test_a_variant_beside_the_weights(
    copied: Path, folders: Folders, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """As libraries save one, in shards: it is not read, so nothing of it is asked for or counts as there."""
    import diffusers

    saved = diffusers.WanPipeline.from_pretrained(folders("wan2.1"), local_files_only=True)
    saved.save_pretrained(tmp_path / "half", variant="fp16", max_shard_size="3KB")
    names = {path.name for path in (tmp_path / "half").rglob("*")}
    assert {"model.fp16-00001-of-00006.safetensors", "model.safetensors.index.fp16.json"} <= names
    line = said(tmp_path / "half", capfd)
    assert "text_encoder: no safetensors file (only model.fp16-00001-of-00006.safetensors, a variant" in line
    shutil.copytree(tmp_path / "half", copied, dirs_exist_ok=True)
    build_model(Registry(), "wan", ModelOptions(weights=str(copied))).load("cpu")
    [path] = (copied / "text_encoder").glob("model.safetensors")
    tensors = load_file(path)
    del tensors["encoder.final_layer_norm.weight"]
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(UserError, match="1 of its weights are in no file"):
        build_model(Registry(), "wan", ModelOptions(weights=str(copied))).load("cpu")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_another_dtype_in_other_shards_is_the_same_pipeline(
    copied: Path, tmp_path: Path, dtype: torch.dtype
) -> None:
    """As repositories differ: one stores float32 in one file, another bfloat16 in many."""
    import diffusers

    saved = diffusers.WanPipeline.from_pretrained(copied, local_files_only=True).to(torch.bfloat16)
    saved.to(dtype).save_pretrained(tmp_path / "other", max_shard_size="3KB")
    names = {path.name for path in (tmp_path / "other" / "transformer").iterdir()}
    assert "diffusion_pytorch_model.safetensors.index.json" in names and len(names) > 3
    loaded = build_model(Registry(), "wan", ModelOptions(weights=str(tmp_path / "other"))).load("cpu")
    original = build_model(Registry(), "wan", ModelOptions(weights=str(copied))).load("cpu")
    wanted = dict(original.transformer.named_parameters())
    for name, parameter in loaded.transformer.named_parameters():
        assert parameter.dtype == torch.float32
        assert torch.equal(parameter, wanted[name].bfloat16().float())
    stored = load_file(copied / "transformer" / "diffusion_pytorch_model.safetensors")
    assert stored.keys() == dict(loaded.transformer.named_parameters()).keys()


def test_numbers_of_8_bits_are_refused(copied: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = copied / "transformer" / "diffusion_pytorch_model.safetensors"
    narrow = {
        name: value.to(torch.float8_e4m3fn) if name.endswith("ffn.net.2.weight") else value
        for name, value in load_file(path).items()
    }
    save_file(narrow, path, {"format": "pt"})
    assert "blocks.0.ffn.net.2.weight is F8_E4M3, numbers of 8 bits" in said(copied, capfd)


@pytest.mark.parametrize(
    ("part", "lost", "line"),
    [
        (
            "transformer",
            "blocks.0.ffn.net.2.weight",
            r"1 of its weights are in no file \(blocks.0.ffn.net.2.we",
        ),
        (
            "text_encoder",
            "encoder.final_layer_norm.weight",
            r"1 of its weights are in no file \(encoder.final",
        ),
        ("vae", "decoder.conv_in.bias", r"1 of its weights are in no file \(decoder.conv_in.bias\)"),
        ("transformer", "", r"its files have blocks.7.x, and config.json a model with 1 blocks"),
    ],
)
def test_weights_that_do_not_fit_the_model(copied: Path, part: str, lost: str, line: str) -> None:
    """Libraries would go on: with random numbers, with none, or without the last blocks."""
    [path] = (copied / part).glob("*.safetensors")
    tensors = load_file(path)
    if lost:
        del tensors[lost]
    else:
        tensors["blocks.7.x"] = torch.zeros(1)
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(UserError, match=line):
        build_model(Registry(), "wan", ModelOptions(weights=str(copied))).load("cpu")


def test_an_unfit_weights_file_is_one_line_too(copied: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Whole files whose shapes are another model's: known only when they are loaded."""
    config = copied / "transformer" / "config.json"
    record = json.loads(config.read_text())
    config.write_text(json.dumps({**record, "ffn_dim": 48}))
    with pytest.raises(UserError, match="cannot be loaded as a WanPipeline"):
        build_model(Registry(), "wan", ModelOptions(weights=str(copied))).load("cpu")


def test_revisions(copied: Path) -> None:
    spec = AnyWan.spec
    with pytest.raises(UserError, match="of no known revision"):
        resolve_folder(spec, str(copied), "abc")
    (copied / FETCH_RECORD).write_text(json.dumps({"revision": "abc"}))
    assert resolve_folder(spec, str(copied), "abc") == copied
    with pytest.raises(UserError, match=r"is of revision abc, asked was def; leave --revision out"):
        resolve_folder(spec, str(copied), "def")
    with pytest.raises(UserError, match=r"def; .*fetch wan2.1-1.3b --revision def, or .*--revision abc$"):
        resolve_folder(Wan21Small.spec, str(copied), "def")


def test_weights_that_were_never_fetched() -> None:
    with pytest.raises(UserError, match=r"weights are not here; .*evalharness fetch wan2\.1-1\.3b"):
        resolve_folder(Wan21Small.spec, None, None)
    with pytest.raises(UserError, match="comes from a folder: give --weights"):
        resolve_folder(AnyWan.spec, None, None)


def test_other_models_refuse_weights(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--weights: model tinyworld takes no such option"):
        build_model(Registry(), "tinyworld", ModelOptions(weights=str(tmp_path)))


def test_the_fingerprint_follows_contents_and_names_only(copied: Path, folders: Folders) -> None:
    check_folder(copied, AnyWan.spec)
    before = fingerprint(copied)
    assert before == fingerprint(folders("wan2.1")) == fingerprint(copied)
    (copied / FETCH_RECORD).write_text("{}")
    assert fingerprint(copied) == before
    weights = copied / "vae" / "diffusion_pytorch_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    assert fingerprint(copied) != before


def test_large_files_are_hashed_once(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from evalharness.models.video import folder as module

    monkeypatch.setattr(module._HashCache, "large", 1000)
    hashed: list[str] = []
    real = module.file_sha256
    monkeypatch.setattr(module, "file_sha256", lambda path: hashed.append(path.name) or real(path))
    first = fingerprint(copied)
    large = [path.name for path in copied.rglob("*") if path.is_file() and path.stat().st_size >= 1000]
    assert sorted(name for name in hashed if name in large) == sorted(large)
    hashed.clear()
    assert fingerprint(copied) == first
    assert not any(name.endswith(".safetensors") for name in hashed)
    weights = copied / "vae" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x55")
    assert fingerprint(copied) != first
