"""Weights of the native scorers: conversion of published forms, and what is refused."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch

from evalharness.api import Skip
from evalharness.errors import UserError
from evalharness.native import catalogue, convert, weights
from evalharness.native.catalogue import CATALOGUE, Entry
from evalharness.native.likeness import FrameLikeness
from evalharness.native.raft import Raft
from evalharness.native.vit import ClipImage
from tests.evalharness.native.openai_names import OPENAI

SMALL = {"width": 64, "depth": 2, "heads": 2, "patch": 32, "embedding": 24}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(weights.FOLDER_VARIABLE, str(tmp_path / "weights"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path / "weights"


def known_as(monkeypatch: pytest.MonkeyPatch, name: str, sha256: str) -> None:
    entry: Entry = CATALOGUE[name]
    changed = {field: getattr(entry, field) for field in entry.__slots__} | {"sha256": sha256}
    table = {**CATALOGUE, name: Entry(**changed)}
    for module in (catalogue, convert, weights):
        monkeypatch.setattr(module, "CATALOGUE", table)


def saved(path: Path, state: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, path)
    return path


def published_raft() -> dict[str, torch.Tensor]:
    """As in raft-things.pth: data parallel, the shortcut's norm stored twice, counters of batches."""
    state = {}
    for key, tensor in Raft().state_dict().items():
        state[f"module.{key}"] = tensor
        if ".downsample.1." in key:
            state[f"module.{key.replace('downsample.1', 'norm3')}"] = tensor
        if key.endswith("running_var"):
            state[f"module.{key.replace('running_var', 'num_batches_tracked')}"] = torch.tensor(7)
    return state


def test_raft_s_file_becomes_ours(folder: Path, tmp_path: Path) -> None:
    state = published_raft()
    assert any("norm3" in key for key in state)
    convert.convert("raft-things", saved(tmp_path / "raft-things.pth", state))
    network = weights.fill(Raft(), weights.tensors("raft-things"), "raft-things")
    assert torch.equal(network.fnet.conv1.weight, state["module.fnet.conv1.weight"])
    assert not network.training
    card = json.loads((folder / "weights.json").read_text())["raft_things.safetensors"]
    assert card["original_sha256"] == hashlib.sha256((tmp_path / "raft-things.pth").read_bytes()).hexdigest()
    assert card["licence"] == "BSD-3-Clause"


class Openai(torch.nn.Module):
    """An archive with OpenAI's names, half precision, and a text half that must not come along."""

    def __init__(self, state: dict[str, torch.Tensor]) -> None:
        super().__init__()
        self.visual = Named(state)
        self.token_embedding = torch.nn.Embedding(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


class Named(torch.nn.Module):
    def __init__(self, state: dict[str, torch.Tensor]) -> None:
        super().__init__()
        parts: dict[str, dict[str, torch.Tensor]] = {}
        for key, tensor in state.items():
            head, dot, rest = key.partition(".")
            if dot:
                parts.setdefault(head, {})[rest] = tensor
            else:
                self.register_parameter(head, torch.nn.Parameter(tensor.half(), requires_grad=False))
        for head, inner in parts.items():
            self.add_module(head, Named(inner))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_an_archive_of_openai_s_becomes_ours(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip, named = ClipImage(**SMALL), {}
    with torch.no_grad():
        for parameter in clip.parameters():
            parameter.normal_()
    for key, tensor in clip.state_dict().items():
        for ours, theirs in OPENAI:
            key = key.replace(ours, theirs)
        named[key] = tensor
    path = tmp_path / "clip_model" / "ViT-B-32.pt"
    path.parent.mkdir()
    torch.jit.trace(Openai(named), torch.zeros(1)).save(str(path))
    known_as(monkeypatch, "clip-vit-b32", hashlib.sha256(path.read_bytes()).hexdigest())
    assert convert.main(["--vbench-cache", str(tmp_path), "--only", "clip-vit-b32"]) == 0
    read = weights.fill(ClipImage(**SMALL), weights.tensors("clip-vit-b32"), "clip-vit-b32")
    for key, tensor in clip.state_dict().items():
        assert torch.equal(read.state_dict()[key], tensor.half().float()), key


def test_a_file_with_another_hash_is_refused_unread(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "ViT-B-32.pt"
    path.write_bytes(b"not even an archive")
    with pytest.raises(ValueError, match=r"sha256 .* but the published clip-vit-b32 has 40d36571"):
        convert.convert("clip-vit-b32", path)
    assert not folder.exists()


def test_a_pickle_that_calls_something_is_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (Path(tmp_path / "sprung"),))  # type: ignore[return-value]

    saved(tmp_path / "raft_model" / "models" / "raft-things.pth", {"a": Trap()})
    assert convert.main(["--vbench-cache", str(tmp_path), "--only", "raft-things"]) == 1
    assert "raft-things: refused" in capsys.readouterr().out
    assert not (tmp_path / "sprung").exists()
    assert not folder.exists()


def test_dino_is_found_where_torch_hub_keeps_it(folder: Path, tmp_path: Path) -> None:
    entry = CATALOGUE["dino-vitb16"]
    assert convert.find(entry, tmp_path / "vbench") is None
    hub = saved(tmp_path / "torch" / "hub" / "checkpoints" / "dino_vitbase16_pretrain.pth", {})
    assert convert.find(entry, tmp_path / "vbench") == hub
    cached = saved(tmp_path / "vbench" / "dino_model" / "dino_vitbase16_pretrain.pth", {})
    assert convert.find(entry, tmp_path / "vbench") == cached


def test_what_is_not_there_is_told_with_its_source(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert convert.main(["--vbench-cache", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == list(CATALOGUE)
    for line, entry in zip(lines, CATALOGUE.values(), strict=True):
        assert entry.original in line
        assert entry.licence in line


def test_a_changed_byte_is_refused(folder: Path) -> None:
    path = weights.store("aesthetic-linear", {"weight": torch.ones(1, 768), "bias": torch.zeros(1)})
    assert weights.missing(["aesthetic-linear"]) == []
    assert set(weights.tensors("aesthetic-linear")) == {"weight", "bias"}
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"weights\.json says .*convert it again"):
        weights.tensors("aesthetic-linear")


def test_a_file_without_its_entry_counts_as_missing(folder: Path) -> None:
    weights.store("aesthetic-linear", {"bias": torch.zeros(1)})
    (folder / "weights.json").unlink()
    assert weights.missing(["aesthetic-linear"]) == ["aesthetic-linear"]
    with pytest.raises(Skip, match="missing"):
        weights.tensors("aesthetic-linear")


def test_tensors_of_another_network_are_named(folder: Path) -> None:
    linear = torch.nn.Linear(768, 1)
    with pytest.raises(ValueError, match=r"aesthetic-linear do not fit the network: bias, weight"):
        weights.fill(linear, {"weight": torch.ones(1, 512)}, "aesthetic-linear")


def test_the_same_tensors_make_the_same_file(folder: Path, tmp_path: Path) -> None:
    state = {"b": torch.ones(3), "a": torch.zeros(2)}
    one = weights.store("aesthetic-linear", state, tmp_path / "1").read_bytes()
    other = weights.store("aesthetic-linear", dict(reversed(state.items())), tmp_path / "2").read_bytes()
    assert one == other


def test_a_likeness_without_features_cannot_be_made(folder: Path) -> None:
    with pytest.raises(TypeError, match=r"abstract class FrameLikeness .*features"):
        FrameLikeness()  # type: ignore[abstract]


def test_a_broken_card_is_named(folder: Path) -> None:
    folder.mkdir()
    (folder / "weights.json").write_text('{"dino_vitb16.safetensors": {}}')
    with pytest.raises(ValueError, match=r"weights\.json: an entry lacks its sha256"):
        weights.missing(["dino-vitb16"])


def test_a_mistyped_cache_is_told_as_that(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere: no such folder; VBench's cache is"):
        convert.main(["--vbench-cache", str(tmp_path / "nowhere")])
