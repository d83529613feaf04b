"""Other libraries' transformers in the profile: what is changed, what is said where one cannot run."""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from evalharness import peers
from evalharness.errors import UserError
from evalharness.peers import PEERS, AbsentError, blocks_of, build_peer, chosen_peers


class Block(nn.Module):
    """One linear after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(32, 32), nn.Linear(32, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.second(self.first(x))
        return out


class Model(nn.Module):
    """Two blocks of two linears, one linear outside."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.head = nn.Linear(32, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        out: torch.Tensor = self.head(x)
        return out


def test_names() -> None:
    assert chosen_peers("none") == chosen_peers("") == ()
    assert chosen_peers("all") == tuple(PEERS)
    assert chosen_peers("quanto-int8, compiled,compiled") == ("quanto-int8", "compiled")
    with pytest.raises(UserError, match="--peers fp4: expected none, all, or some of compiled, torchao-int8"):
        chosen_peers("compiled,fp4")


@pytest.mark.parametrize("name", [name for name, peer in PEERS.items() if peer.library])
def test_a_library_that_is_not_there_costs_one_line(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "package_version", lambda _: None)
    with pytest.raises(AbsentError, match=f"^{PEERS[name].library} is not installed: pip install"):
        build_peer(name, Model(), ["head"])


def test_what_a_library_says_is_passed_on_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError("no kernel here\nfurther lines")

    library = types.SimpleNamespace(quantize_=refuse, Int8DynamicActivationInt8WeightConfig=lambda: None)
    monkeypatch.setitem(sys.modules, "torchao.quantization", library)
    monkeypatch.setattr(peers, "package_version", lambda _: "0")
    with pytest.raises(AbsentError, match=r"^torchao does not run here: RuntimeError: no kernel here$"):
        build_peer("torchao-int8", Model(), [])


def test_the_named_linears_of_a_copy_are_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the libraries are asked for, by stand-ins that have their functions' names."""
    asked: dict[str, Any] = {}

    def quantize_(module: nn.Module, config: object, filter_fn: Any) -> None:
        asked["torchao"] = [n for n, part in module.named_modules() if filter_fn(part, n)], config, module

    def quantize(module: nn.Module, weights: object, include: list[str]) -> None:
        asked["quanto"] = include, weights, module

    torchao = types.SimpleNamespace(quantize_=quantize_, Int8DynamicActivationInt8WeightConfig=lambda: "int8")
    quanto = types.SimpleNamespace(quantize=quantize, freeze=lambda module: None, qint8="qint8")
    monkeypatch.setitem(sys.modules, "torchao.quantization", torchao)
    monkeypatch.setitem(sys.modules, "optimum.quanto", quanto)
    monkeypatch.setattr(peers, "package_version", lambda _: "0")
    model, names = Model(), ["blocks.0.first", "blocks.1.second"]
    for name, library, how in (("torchao-int8", "torchao", "int8"), ("quanto-int8", "quanto", "qint8")):
        built = build_peer(name, model, names)
        changed, config, module = asked[library]
        assert changed == names and config == how and module is built
        assert built is not model and not any(p.requires_grad for p in built.parameters())


def test_blocks_are_compiled_and_compute_the_same() -> None:
    model, x = Model().eval(), torch.randn(3, 32)
    assert list(blocks_of(model)) == list(model.blocks)
    seen = []

    def backend(graph: Any, _: Any) -> Any:
        seen.append(graph)
        return graph.forward

    torch.compiler.reset()
    plain = model(x)
    built = peers.compile_blocks_(model, backend)  # type: ignore[arg-type]
    with torch.no_grad():
        torch.testing.assert_close(built(x), plain)
    assert seen


class Shell(torch.Tensor):
    """Stands for float32 [4, 32]; holds int8 codes and a scale a row, as libraries' tensors do."""

    @staticmethod
    def __new__(cls, codes: torch.Tensor, scale: torch.Tensor) -> Shell:
        made: Shell = torch.Tensor._make_wrapper_subclass(cls, codes.shape, dtype=torch.float32)
        made.codes, made.scale = codes, scale
        return made

    codes: torch.Tensor
    scale: torch.Tensor

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["codes", "scale"], None

    @classmethod
    def __torch_dispatch__(cls, function: Any, kinds: Any, args: Any = (), kwargs: Any = None) -> Any:
        return args[0]  # detach, when a parameter is made of it


def test_bytes_of_tensors_that_hold_others() -> None:
    """128 codes and four scales, not 512 bytes of float32; a tensor that two modules share counts once."""
    model = nn.Module()
    model.register_buffer("weight", Shell(torch.zeros(4, 32, dtype=torch.int8), torch.ones(4)))
    assert peers.held_bytes(model) == 4 * 32 + 4 * 4
    linear = nn.Linear(32, 4)
    model.a, model.b = linear, nn.Sequential(linear)
    assert peers.held_bytes(model) == 4 * 32 + 4 * 4 + 4 * (32 * 4 + 4)


def test_the_table_of_other_libraries() -> None:
    """One row a peer, from the full-precision cell; the line of one that is absent stands in it."""
    from evalharness.report.tables import markdown, peer_rows
    from tests.evalharness.test_report import TABLE, build, record

    found = {
        "compiled": {"summary": "as it is", "bits": 16, "library": None, "step_ms": 8.0, "step_speedup": 1.25,
                     "executed_mb": 20.4},
        "torchao-int8": {"summary": "W8A8", "bits": 8, "absent": "torchao is not installed"},
    }  # fmt: skip
    cells = [record(method, bits) for method, bits in TABLE]
    assert peer_rows(build(cells)) == []
    results = build([replace(cells[0], profile={**(cells[0].profile or {}), "peers": found}), *cells[1:]])
    first, second = peer_rows(results)
    assert (first["step_ms"], first["step_speedup"], first["why not"]) == ("8.00", "1.25", "")
    assert (second["step_ms"], second["why not"]) == ("-", "torchao is not installed")
    assert "## Other libraries" in markdown(results)


def test_a_run_times_them_beside_full_precision_once(toy_run: Callable[..., Any], tmp_path: Path) -> None:
    asked = ("--methods", "toy-round", "--limit", "1", "--seeds", "0,1")
    assert toy_run(*asked, "--peers", "quanto-int8").code == 0
    profiles = {
        path.parent.name: json.loads(path.read_text()) for path in tmp_path.glob("out/cells/*/profile.json")
    }
    with_peers = [name for name, profile in profiles.items() if "peers" in profile]
    assert with_peers == ["bf16-s0"]
    entry = profiles["bf16-s0"]["peers"]["quanto-int8"]
    assert entry["absent"].startswith("optimum-quanto") or entry["step_ms"] > 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    (kept,) = (cell["profile"] for cell in results["cells"] if cell["id"] == "bf16-s0")
    assert kept["peers"] == profiles["bf16-s0"]["peers"], "they reach the tables"
    files = {path: path.stat().st_mtime_ns for path in tmp_path.glob("out/cells/*/profile.json")}
    assert toy_run(*asked).code == 0  # nobody asks for them: what is there stays
    assert files == {path: path.stat().st_mtime_ns for path in files}
    assert (
        toy_run(*asked, "--peers", "quanto-int8,torchao-int8").code == 0
    )  # one more: that record is renewed
    changed = [path.parent.name for path, then in files.items() if path.stat().st_mtime_ns != then]
    assert changed == ["bf16-s0"]
    again = {path: path.stat().st_mtime_ns for path in files}
    assert toy_run(*asked, "--peers", "quanto-int8,torchao-int8").code == 0  # also where a library is absent
    assert again == {path: path.stat().st_mtime_ns for path in files}
    assert toy_run(*asked, "--peers", "bitsandbytes-nf4").code == 0
    record = json.loads((tmp_path / "out" / "cells" / "bf16-s0" / "profile.json").read_text())
    assert sorted(record["peers"]) == ["bitsandbytes-nf4", "quanto-int8", "torchao-int8"], (
        "what was known stays"
    )


def test_what_a_library_sets_for_the_compiler_ends_with_it() -> None:
    """Torchao turns a tuner on for the whole process; what is compiled after it must not inherit that."""
    config = pytest.importorskip("torch._inductor.config")
    before = config.coordinate_descent_tuning, config.triton.unique_kernel_names
    with peers.compiler_settings_kept():
        config.coordinate_descent_tuning = not before[0]
        config.triton.unique_kernel_names = not before[1]
    assert (config.coordinate_descent_tuning, config.triton.unique_kernel_names) == before
