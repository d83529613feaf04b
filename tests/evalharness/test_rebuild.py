"""The rebuild of tinyworld's assets, with trainings that only write what the real ones would."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import pytest
import yaml

from evalharness.tinyworld.training import rebuild

CONFIG = Path(__file__).parents[2] / "configs" / "tinyworld-published.yaml"
DECODER = "diffusion_pytorch_model.safetensors"
INPUTS = ("--init", "--vae", "--judges", "--pipeline", "--config")
NAMES = ["vae", "vae", "text2video", "judges", "judge_heads", *["checkpoints"] * 9]


class Trainings:
    """Stands for the processes: writes each stage's files and keeps what was called."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, dict[str, str]]] = []
        self.codes: dict[str, int] = {}
        self.without_result: set[str] = set()
        self.decoders: list[str] = []

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.calls]

    def __call__(self, command: Sequence[str]) -> int:
        assert list(command[:2]) == [sys.executable, "-m"]
        package, _, name = command[2].rpartition(".")
        assert package == "evalharness.tinyworld.training"
        words = [word for word in command[3:] if word != "--decoder-only"]
        options = dict(zip(words[::2], words[1::2], strict=True))
        self.calls.append((name, options))
        missing = [flag for flag in INPUTS if flag in options and not Path(options[flag]).exists()]
        assert missing == [], f"{name} wants what no stage before it made: {missing}"
        if name not in self.without_result:
            self.write(name, options)
        return self.codes.get(name, 0)

    def write(self, name: str, options: dict[str, str]) -> None:
        out = Path(options["--out"])
        files = {
            "vae": ["training.json", DECODER],
            "text2video": ["training.json", "pipeline/model_index.json", f"pipeline/vae/{DECODER}"],
            "judges": ["judges.json"],
            "judge_heads": ["judges.json", "frame.safetensors"],
            "checkpoints": [
                "{method}-w{bits}a{bits}/evalharness.json",
                "{method}-w{bits}a{bits}.train.jsonl",
            ],
        }[name]
        if name == "checkpoints":
            self.decoders.append((Path(options["--pipeline"]) / "vae" / DECODER).read_text())
            files = [file.format(method=options["--method"], bits=options["--bits"]) for file in files]
        for file in files:
            path = out / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{name} {out.name}")


@pytest.fixture
def trainings() -> Trainings:
    return Trainings()


@pytest.fixture
def build(tmp_path: Path, trainings: Trainings) -> Callable[..., Path]:
    """Call the command line; returns the build folder."""

    def run(*flags: str) -> Path:
        folder = tmp_path / "build"
        arguments = ["--build", str(folder), "--device", "cpu", "--config", str(CONFIG), *flags]
        rebuild.main(arguments, call=trainings, assets=tmp_path / "assets")
        return folder

    return run


def test_from_nothing_every_stage_runs_once_on_what_those_before_it_made(
    build: Callable[..., Path], trainings: Trainings
) -> None:
    folder = build()
    assert trainings.names == NAMES
    assert {options["--device"] for _, options in trainings.calls} == {"cpu"}
    made = sorted(path.name for path in (folder / "checkpoints").iterdir() if path.is_dir())
    assert made == [f"{method}-w{b}a{b}" for method in ("kd-qat", "lsq", "qvgen") for b in (2, 3, 4)]


def test_what_is_done_is_skipped(build: Callable[..., Path], trainings: Trainings) -> None:
    folder = build()
    trainings.calls.clear()
    build()
    assert trainings.calls == []
    (folder / "judges" / "judges.json").unlink()
    (folder / "checkpoints" / "lsq-w3a3" / "evalharness.json").unlink()
    build()
    assert trainings.names == ["judge_heads", "checkpoints"]
    assert trainings.calls[1][1]["--method"] == "lsq"


@pytest.mark.parametrize("code", [0, 3, -9])
def test_a_stage_without_result_ends_the_call_and_the_next_one_goes_on(
    build: Callable[..., Path], trainings: Trainings, code: int
) -> None:
    trainings.without_result, trainings.codes = {"text2video"}, {"text2video": code}
    with pytest.raises(
        SystemExit, match=rf"text2video stopped with exit code {code} and without .*training.json"
    ):
        build()
    assert trainings.names == NAMES[:3]
    trainings.without_result, trainings.codes = set(), {}
    build()
    assert trainings.names == NAMES[:3] + NAMES[2:]


def test_judges_below_their_bar_do_not_end_the_call(
    build: Callable[..., Path], trainings: Trainings, capsys: pytest.CaptureFixture[str]
) -> None:
    """Their training says so by exit code 1; the files are there."""
    trainings.codes = {"judges": 1, "judge_heads": 1}
    build()
    assert trainings.names == NAMES
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("+ -m ")]
    assert len(told) == len(NAMES)


def test_checkpoints_are_trained_on_the_pipeline_with_the_better_decoder(
    build: Callable[..., Path], trainings: Trainings
) -> None:
    folder = build()
    assert trainings.decoders == ["vae vae-decoder"] * 9
    assert (folder / "text2video" / "pipeline" / "vae" / DECODER).read_text() == "vae vae-decoder"


def test_install_puts_whole_folders_into_the_package(
    build: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assets = tmp_path / "assets"
    for old in (
        "pipeline/vae/old.safetensors",
        "judges/old.json",
        "checkpoints/rtn-w2a2/evalharness.json",
        "CARD.md",
    ):
        path = assets / old
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("old")
    build()
    assert (assets / "judges" / "old.json").exists()  # nothing without --install
    build("--install")
    found = {p.relative_to(assets).as_posix(): p.read_text() for p in assets.rglob("*") if p.is_file()}
    assert found == {
        "pipeline/model_index.json": "text2video text2video",
        f"pipeline/vae/{DECODER}": "vae vae-decoder",
        "judges/judges.json": "judge_heads judges",
        "judges/frame.safetensors": "judge_heads judges",
        **{
            f"checkpoints/{method}-w{b}a{b}/evalharness.json": "checkpoints checkpoints"
            for method in ("lsq", "kd-qat", "qvgen")
            for b in (4, 3, 2)
        },
        "checkpoints/rtn-w2a2/evalharness.json": "old",
        "CARD.md": "old",
    }
    assert (
        "checkpoints of another pipeline, to be trained again or removed: rtn-w2a2" in capsys.readouterr().err
    )


def test_a_trial_is_shortened_and_never_to_nothing(build: Callable[..., Path], trainings: Trainings) -> None:
    build("--scale", "0.001")
    steps = [int(options["--steps"]) for _, options in trainings.calls if "--steps" in options]
    assert steps == [3, 10, 49, 2]  # of 3000, 10000, 49000 and 1050; at least 2
    clips = [int(options["--clips"]) for _, options in trainings.calls if "--clips" in options]
    assert clips == [66, 8]  # of 65536 and 5000; at least 8
    assert {int(options["--batch"]) for _, options in trainings.calls if "--batch" in options} == {4}


class Parsed(Exception):
    """Carries the options out of a training's command line before it trains."""


@pytest.mark.parametrize("number", range(len(NAMES)))
def test_every_training_understands_its_arguments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    stage = rebuild.stages(tmp_path, "cpu", CONFIG, 1.0)[number]
    assert stage.name == NAMES[number]
    real = argparse.ArgumentParser.parse_args

    def parse(self: argparse.ArgumentParser, *given: Any) -> NoReturn:
        raise Parsed(real(self, *given))

    module = importlib.import_module(f"{rebuild.MODULES}.{stage.name}")
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse)
    monkeypatch.setattr(sys, "argv", [stage.name, *stage.arguments])
    with pytest.raises(Parsed) as caught:
        module.main()
    assert caught.value.args[0].device == "cpu"
    assert stage.done.is_relative_to(Path(caught.value.args[0].out))


def test_the_published_recipe_names_what_is_rebuilt() -> None:
    recipe = yaml.safe_load(CONFIG.read_text())
    assert {method for method, _ in rebuild.PUBLISHED} <= set(recipe["methods"]) & set(
        recipe["method_options"]
    )
    assert {int(bits) for _, bits in rebuild.PUBLISHED} <= set(recipe["bits"])
