"""Predictions against counted work, and what doctor says of a model."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from evalharness.cli.main import main
from evalharness.compat import protocol_notes
from evalharness.machine.costs import (
    Rates,
    call_seconds,
    expert_bytes,
    memory_needs,
    video_seconds,
    video_tokens,
    weights_bytes,
    work_of,
)
from evalharness.protocols.vbench import MLPerfProtocol, QVGen8Protocol
from evalharness.registry import Registry
from evalharness.smoke.protocol import SmokeProtocol
from tests.evalharness.models.full_size import Alive, NoAttention, model

H100 = Rates(gemm=700e12, attention=400e12, float32=50e12, bandwidth=3.0e12)


@pytest.mark.parametrize(
    ("name", "generation", "tokens", "linear", "attention"),
    [
        ("cogvideox-2b", {}, 17776, 47.2e12, 72.8e12),
        ("wan2.1-1.3b", {}, 32760, 82.1e12, 200.9e12),
        ("wan2.1-14b", {"height": 480, "width": 832}, 32760, 785e12, 892.7e12),
        ("wan2.1-14b", {}, 75600, 1810e12, 4713.7e12),
    ],
)
def test_work_of_the_full_models(
    name: str, generation: dict[str, Any], tokens: int, linear: float, attention: float
) -> None:
    """The figures are from a count by hand, in docs/models."""
    built = model(name, generation=generation)
    work = work_of(built.spec, built.settings)
    assert work.tokens == tokens
    assert work.linear_flops == pytest.approx(linear, rel=0.01)
    assert work.attention_flops == pytest.approx(attention, rel=0.01)


@pytest.mark.parametrize("name", ["cogvideox-2b", "cogvideox1.5-5b", "wan2.1-1.3b", "wan2.2-5b"])
def test_work_is_what_torch_counts(name: str) -> None:
    """Blocks of full width on the meta device at a small size: what four count more than one."""
    spec = model(name).spec

    def with_blocks(count: int) -> Any:
        config = {**spec.shape.config, "num_layers": count}
        return dataclasses.replace(spec, shape=dataclasses.replace(spec.shape, layers=count, config=config))

    size = 8 * spec.spatial
    settings = dataclasses.replace(model(name).settings, frames=9, height=size, width=size)
    work = {count: work_of(with_blocks(count), settings) for count in (1, 4)}
    flops = {count: counted_flops(with_blocks(count), settings) for count in (1, 4)}
    wanted = work[4].linear_flops + work[4].attention_flops
    wanted -= work[1].linear_flops + work[1].attention_flops
    assert wanted == pytest.approx(flops[4] - flops[1], rel=0.01)


def counted_flops(spec: Any, settings: Any) -> int:
    import diffusers
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        module = getattr(diffusers, spec.transformer)(**spec.shape.config)
        text = torch.empty(1, spec.shape.text_tokens, 4096)
        time = torch.zeros(1, dtype=torch.long)
        if spec.shape.joint_text:
            frames = 4 if spec.shape.patch[0] == 2 else 3
            rotary = None
            if spec.shape.config["use_rotary_positional_embeddings"]:
                rotary = tuple(torch.empty(video_tokens(spec, settings), 64) for _ in range(2))
            inputs: dict[str, Any] = {
                "hidden_states": torch.empty(1, frames, 16, 8, 8),
                "image_rotary_emb": rotary,
            }
        else:
            inputs = {"hidden_states": torch.empty(1, spec.latent_channels, 3, 8, 8)}
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            module(encoder_hidden_states=text, timestep=time, return_dict=False, **inputs)
    return int(counter.get_total_flops())


def test_a_video_on_known_rates() -> None:
    """Published on one H100: eager Wan2.1-14B at 480p takes 8 to 10 s for a guided step."""
    built = model("wan2.1-14b", generation={"height": 480, "width": 832})
    guided = 2 * call_seconds(work_of(built.spec, built.settings), H100)
    assert 6 < guided < 10
    whole = video_seconds(built.spec, built.settings, H100)
    assert 50 * guided < whole < 50 * guided + 20
    unguided = dataclasses.replace(built.settings, guidance=1.0)
    assert video_seconds(built.spec, unguided, H100) == pytest.approx(whole - 25 * guided * 1.0, rel=0.02)


def test_what_the_dry_run_reckons_with() -> None:
    """Reports of Wan2.1-1.3B on one H100: about 85 s a video, eager; a core takes days."""
    video, sample = model("wan2.1-1.3b").predicted_seconds("cuda")
    assert 75 < video < 100 and 2 < sample < 6
    assert model("wan2.1-1.3b").predicted_seconds("cpu")[0] > 86400
    assert model("wan").predicted_seconds("cuda") is None


@pytest.mark.parametrize("name", ["cogvideox-2b", "wan2.1-1.3b", "wan2.1-14b"])
def test_activations_are_those_alive_in_a_call(name: str) -> None:
    """Two blocks of full width and full size of a video, in bfloat16 on the meta device."""
    built = model(name, generation={"height": 480, "width": 832} if "14b" in name else {})
    spec, settings = built.spec, built.settings
    import diffusers

    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("meta"):
            module = getattr(diffusers, spec.transformer)(**{**spec.shape.config, "num_layers": 2})
            frames, rows, columns = 1 + settings.frames // 4, settings.height // 8, settings.width // 8
            joint = spec.shape.joint_text
            size = (2, frames, 16, rows, columns) if joint else (1, 16, frames, rows, columns)
            inputs = torch.empty(size), torch.empty(size[0], spec.shape.text_tokens, 4096)
            time = torch.zeros(size[0], dtype=torch.long)
    finally:
        torch.set_default_dtype(torch.float32)
    with Alive() as alive, NoAttention(), torch.inference_mode():
        module(hidden_states=inputs[0], encoder_hidden_states=inputs[1], timestep=time, return_dict=False)
    [phases] = [need for need in memory_needs(spec, settings) if need.preset == "phases"]
    activations = phases.phases["denoise"] - 2 * spec.shape.parameters
    assert activations == pytest.approx(alive.most, rel=0.05)


def test_memory_by_preset() -> None:
    """Text encoders of 9.5 and 11.4 GB; 28.6 GB of 14B weights, and as much again for a second expert."""
    for name in ("cogvideox-2b", "wan2.1-1.3b", "wan2.1-14b"):
        built = model(name)
        resident, phases, blocks = memory_needs(built.spec, built.settings)
        assert resident.peak > phases.peak >= blocks.peak
    pair, single = (memory_needs(model(n).spec, model(n).settings) for n in ("wan2.2-a14b", "wan2.1-14b"))
    assert pair[0].peak - single[0].peak == pytest.approx(28.6e9, rel=0.01)
    assert pair[1].peak == single[1].peak  # one expert at a time


@pytest.mark.parametrize(
    ("name", "listed"),
    [
        ("cogvideox-2b", 13_775_555_658), ("wan2.1-1.3b", 28_928_887_859), ("wan2.1-14b", 80_406_933_703),
        ("wan2.2-5b", 34_201_427_557), ("wan2.2-a14b", 126_200_628_126),
    ],
)  # fmt: skip
def test_disk_for_weights(name: str, listed: int) -> None:
    """Bytes of the pinned revisions' files, as public projects that fetched them list them."""
    assert weights_bytes(model(name).spec) == pytest.approx(listed, rel=0.001)


def test_every_model_of_a_repository_is_pinned() -> None:
    specs = [getattr(Registry().get("models", name), "spec", None) for name in Registry().names("models")]
    pinned = {spec.repo: spec.revision for spec in specs if spec is not None and spec.repo}
    assert len(pinned) == 6 == len(set(pinned.values()))
    assert all(re.fullmatch("[0-9a-f]{40}", revision) for revision in pinned.values())


PAGES = sorted(
    path for path in (Path(__file__).parents[3] / "docs" / "models").glob("*.md") if path.stem != "README"
)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_pages_say_what_is_predicted(page: Path) -> None:
    built = model(page.stem)
    text = page.read_text()
    disk = weights_bytes(built.spec) / 1e9
    assert f"| disk, weights as the hub stores them | {disk:.0f} GB |" in text
    for need in memory_needs(built.spec, built.settings):
        phases = ", ".join(f"{phase} {size / 1e9:.1f}" for phase, size in need.phases.items())
        assert f"| predicted peak, `--memory {need.preset}` | {need.peak / 1e9:.0f} GB ({phases}) |" in text
    sizes = []
    for execution in ("packed", "fake"):
        size = expert_bytes(built.spec, execution, 4)
        [need] = [
            n for n in memory_needs(built.spec, built.settings, transformer=size) if n.preset == "phases"
        ]
        sizes.append(need.phases["denoise"] / 1e9)
    assert f"at W4A4 under `phases` | packed {sizes[0]:.1f} GB, simulated {sizes[1]:.1f} GB |" in text


def test_notes_of_a_protocol() -> None:
    [note] = protocol_notes(QVGen8Protocol(), "wan2.1-1.3b", 81, 16)
    assert note.startswith("81 frames at 16 fps are 5.06 s") and "VBench-Long" in note
    assert protocol_notes(QVGen8Protocol(), "wan2.1-1.3b", 79, 16) == []
    assert protocol_notes(SmokeProtocol(), "wan2.1-1.3b", 81, 16) == []
    notes = protocol_notes(MLPerfProtocol(), "wan2.1-14b", 49, 16, fixed_noise=True)
    assert any("70.48 is no reference" in note for note in notes)
    assert any("seed 42" in note for note in notes)
    assert not any("70.48" in note for note in protocol_notes(MLPerfProtocol(), "wan2.2-a14b", 81, 16))


Folders = Callable[[str], Path]


def doctor(capfd: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, dict[str, str]]]:
    capfd.readouterr()
    code = main(["doctor", "--json", *arguments])
    record = json.loads(capfd.readouterr().out)
    return code, {check["name"]: check for check in record["checks"]}


def test_doctor_of_a_model_that_is_not_there(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, checks = doctor(capfd, "--model", "wan2.1-1.3b", "--protocol", "mlperf-t2v")
    assert code == 1
    assert checks["model wan2.1-1.3b"]["status"] == "fail"
    assert checks["model wan2.1-1.3b"]["fix"] == "evalharness fetch wan2.1-1.3b"
    assert "81 frames 480x832 at 16 fps, 50 steps" in checks["settings"]["detail"]
    assert "about 29 GB of weights" in checks["disk for weights"]["detail"]
    assert "248 videos of one row" in checks["time"]["detail"]
    assert "283 TFLOP a call" in checks["time"]["detail"]


def test_doctor_of_a_folder(
    folders: Folders, capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, checks = doctor(capfd, "--model", "wan", "--weights", str(folders("wan2.1")), "--protocol", "smoke")
    assert code == 0
    assert checks["model wan"]["status"] == "ok"
    assert "4 videos a row; no prediction" in checks["prediction"]["detail"]


def test_the_advice_stands_in_plan_and_report(
    flags: Callable[..., list[str]],
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Frames over five seconds under VBench: said before the run, and above its table."""
    monkeypatch.chdir(tmp_path)
    run = ["run", *flags("wan2.1", fps=1), "--protocol", "qvgen-8", "--limit", "1", "--workers", "0",
           "--no-profile", "--output", "out"]  # fmt: skip
    assert main([*run, "--dry-run"]) == 0
    assert "5 frames at 1 fps are 5.00 s" in capfd.readouterr().err
    assert main([*run, "--dimensions", "subject_consistency"]) in (0, 1)
    assert "VBench-Long" in Path("out/leaderboard.md").read_text()
