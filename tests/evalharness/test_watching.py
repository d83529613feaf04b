"""What can be watched while a training runs: TensorBoard files and videos of a few prompts."""

from __future__ import annotations

import importlib.util
import json
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from evalharness.errors import UserError
from evalharness.executor import WorkerSpec
from evalharness.seeds import video_seed
from evalharness.session import Session
from evalharness.stages.context import StageContext
from evalharness.tracker import check_tracker
from evalharness.video import read_video

TRAIN = ("--methods", "qvgen", "--bits", "3", "--limit", "1", "--no-profile", "--workers", "0")
QUICK = (
    "--set", "qvgen.recipe.steps=6", "--set", "qvgen.rank=2", "--set", "qvgen.recipe.log_every=2",
)  # fmt: skip
CELL = "out/cells/qvgen-w3a3-s0"


def events(folder: Path) -> Iterator[Any]:
    """Records of an event file: length, two checksums, and a message each."""
    from tensorboardX.proto.event_pb2 import Event

    [path] = folder.glob("events.*")
    data = path.read_bytes()
    while data:
        (size,) = struct.unpack("<Q", data[:8])
        event = Event()
        event.ParseFromString(data[12 : 12 + size])
        yield event
        data = data[16 + size :]


def test_tensorboard_gets_the_numbers_of_the_log(toy_run: Callable[..., Any], tmp_path: Path) -> None:
    assert toy_run(*TRAIN, *QUICK, "--track", "tensorboard").code == 0
    lines = [json.loads(line) for line in (tmp_path / CELL / "train.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4, 6]
    found: dict[str, dict[int, float]] = {}
    for event in events(tmp_path / CELL / "tensorboard"):
        for value in event.summary.value:
            found.setdefault(value.tag, {})[event.step] = value.simple_value
    for name in ("loss", "grad_norm", "lr_weights", "rank"):
        assert found[name] == pytest.approx({line["step"]: line[name] for line in lines}, rel=1e-6)
    assert "step" not in found


def test_without_a_writer_nothing_begins(
    toy_run: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name.startswith("tensorboard") else find(name)
    )
    with pytest.raises(UserError, match=r"--track tensorboard: .* pip install 'evalharness\[tracking\]'"):
        check_tracker("tensorboard")
    with pytest.raises(UserError, match="--track wandb: expected one of none, tensorboard"):
        check_tracker("wandb")


def test_videos_show_the_model_in_training_and_change_nothing(
    toy_run: Callable[..., Any], tmp_path: Path
) -> None:
    assert toy_run(*TRAIN, *QUICK, "--set", "qvgen.recipe.sample_every=3").code == 0
    watch = tmp_path / CELL / "watch"
    assert sorted(path.name for path in watch.iterdir()) == ["step-000003", "step-000006"]
    names = sorted(path.name for path in (watch / "step-000003").iterdir())
    assert names and len(names) <= 4
    assert all(len(read_video(path).frames) == 5 for path in watch.glob("*/*.mp4"))
    watched = (tmp_path / CELL / "checkpoint" / "model.safetensors").read_bytes()
    assert toy_run(*TRAIN, *QUICK).code == 0
    assert (tmp_path / CELL / "checkpoint" / "model.safetensors").read_bytes() == watched


def test_videos_are_made_by_the_given_model_which_then_leaves(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = Session(WorkerSpec(model="toy", protocol="toy", device="cpu", skip_layers="std"))
    context = StageContext(session, 7, tmp_path / "train.jsonl")
    student, before = session.fresh_transformer(), session.loaded.transformer
    asked: list[tuple[Any, str, int]] = []
    generate = session.loaded.generate

    def note(prompts: list[str], seeds: list[int]) -> Any:
        asked.append((session.loaded.transformer, prompts[0], seeds[0]))
        if len(asked) > 4:
            raise ValueError("out of memory")
        return generate(prompts, seeds)

    monkeypatch.setattr(session.loaded, "generate", note)
    context.sample_videos(student, 20)
    assert all(model is student for model, _, _ in asked) and len({seed for _, _, seed in asked}) == len(
        asked
    )
    first = next(iter(session.prompts.values()))
    assert asked[0][1:] == (first.text, video_seed(7, first.id, 0)), "as generation will make it"
    assert session.loaded.transformer is before
    asked += asked[:1] * 4
    with pytest.raises(ValueError, match="out of memory"):
        context.sample_videos(student, 40)
    assert session.loaded.transformer is before


def test_sampling_needs_a_context_that_can() -> None:
    from types import SimpleNamespace

    from torch import nn

    from qvgen.training.recipe import TrainRecipe
    from qvgen.training.validation import Validation

    with pytest.raises(ValueError, match="the context has no sample_videos; set it to 0"):
        Validation(nn.Linear(2, 2), None, TrainRecipe(sample_every=1), SimpleNamespace())  # type: ignore[arg-type]
