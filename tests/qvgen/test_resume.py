"""A training that was killed goes on to the same bits; a state of another one is refused."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from tests.qvgen import killed_training
from tests.qvgen.killed_training import Context, train


class Interrupted(Exception):
    pass


class Fragile(Context):
    """Breaks off by an exception where ``Context`` kills the process."""

    def interrupt(self) -> None:
        raise Interrupted


def lines(folder: Path) -> list[dict[str, Any]]:
    records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in record.items() if k != "seconds"} for record in records]


def state_file(folder: Path) -> Path:
    return folder / "state" / "train_state.safetensors"


def saved_step(folder: Path) -> int:
    with safe_open(state_file(folder), framework="pt") as file:
        step: int = json.loads(file.metadata()["train_state"])["step"]
    return step


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    train(Context(folder), folder)
    return folder


# 37 steps of two batches: 7 hold, then 8>4>2>1>0 of 7 steps each from step 7 on. Saved every 5 steps.
@pytest.mark.parametrize("batch", [3, 11, 28, 45, 61, 73])
def test_broken_off_and_gone_on(batch: int, undisturbed: Path, tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        train(Fragile(tmp_path, kill_at=batch), tmp_path)
    assert state_file(tmp_path).exists() == (batch >= 10)
    if batch >= 10:
        assert saved_step(tmp_path) == 5 * (batch // 10)
    torch.rand(7)  # the process has drawn other random numbers since
    train(Context(tmp_path), tmp_path)
    assert lines(tmp_path) == lines(undisturbed)
    assert (tmp_path / "model.safetensors").read_bytes() == (undisturbed / "model.safetensors").read_bytes()


def test_killed_twice_by_the_system(undisturbed: Path, tmp_path: Path) -> None:
    """SIGKILL to real processes, at steps 18 and 31; the third comes through."""
    command = [sys.executable, killed_training.__file__, str(tmp_path)]
    repository = str(Path(__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": repository, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    for batch, saved in ((37, 15), (63, 30)):
        killed = subprocess.run([*command, str(batch)], env=environment, capture_output=True)
        assert killed.returncode == -signal.SIGKILL
        assert saved_step(tmp_path) == saved
        (tmp_path / "state" / ".train_state.safetensors.x1").write_bytes(b"killed while saving")
    subprocess.run(command, env=environment, check=True)
    assert lines(tmp_path) == lines(undisturbed)
    assert (tmp_path / "model.safetensors").read_bytes() == (undisturbed / "model.safetensors").read_bytes()
    assert [p.name for p in (tmp_path / "state").iterdir()] == ["train_state.safetensors"]


def test_a_context_without_a_folder_saves_nothing(tmp_path: Path, undisturbed: Path) -> None:
    ctx = Context(tmp_path)
    del ctx.state_folder
    train(ctx, tmp_path)
    assert lines(tmp_path) == lines(undisturbed)
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize(("share", "step"), [(1e9, 4), (1e-9, 1)])
def test_time_alone_saves_too(
    share: float, step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After each step, but never so often that saving takes more than its share of the time."""
    import qvgen.training.state as state

    monkeypatch.setattr(state, "_SHARE_OF_TIME", share)
    with pytest.raises(Interrupted):
        train(Fragile(tmp_path, kill_at=8), tmp_path, save_every=0, save_every_s=1e-9)
    assert saved_step(tmp_path) == step


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lr_weights": 3e-3}, r"recipe.lr_weights was 0.002, is 0.003"),
        ({"steps": 40}, r"recipe.steps was 37, is 40"),
        ({"seed": 4}, r"seed was 3, is 4"),
        ({"weights": 1.0}, r"model was '\w+', is '\w+'"),
    ],
)
def test_the_state_of_another_training_is_refused(
    change: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Interrupted):
        train(Fragile(tmp_path, kill_at=30), tmp_path)
    ctx, changes = Context(tmp_path), dict(change)
    ctx.seed = changes.pop("seed", ctx.seed)
    if changes.pop("weights", None):
        other = killed_training.model()
        with torch.no_grad():
            other[0].weight[0, 0] += 1e-3  # type: ignore[index]
        monkeypatch.setattr(killed_training, "model", lambda: other)
    with pytest.raises(ValueError, match=r"another training: " + message + r"; delete the file"):
        train(ctx, tmp_path, **changes)
    assert lines(tmp_path), "the log is left as it was"


def test_how_often_a_state_is_saved_may_change(tmp_path: Path, undisturbed: Path) -> None:
    with pytest.raises(Interrupted):
        train(Fragile(tmp_path, kill_at=30), tmp_path)
    train(Context(tmp_path), tmp_path, save_every=7, save_every_s=60.0)
    assert lines(tmp_path) == lines(undisturbed)


@pytest.mark.parametrize("damage", ["cut", "foreign"])
def test_a_damaged_state_is_an_error_with_its_name(damage: str, tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        train(Fragile(tmp_path, kill_at=30), tmp_path)
    file = state_file(tmp_path)
    data = file.read_bytes() if damage == "cut" else (b"\x08" + b"\0" * 7 + b"{}" + b" " * 6)
    file.write_bytes(data[: len(data) // 2] if damage == "cut" else data)
    with pytest.raises(ValueError, match=r"train_state.safetensors is no readable training state .* delete"):
        train(Context(tmp_path), tmp_path)


def test_a_kill_while_saving_leaves_the_older_state(
    tmp_path: Path, undisturbed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import qvgen.training.state as state

    real, calls = state.save_file, []

    def torn(tensors: Any, path: Path, metadata: Any) -> None:
        calls.append(path)
        if len(calls) == 3:
            Path(path).write_bytes(b"half")
            raise Interrupted
        real(tensors, path, metadata)

    monkeypatch.setattr(state, "save_file", torn)
    with pytest.raises(Interrupted):
        train(Context(tmp_path), tmp_path)
    monkeypatch.undo()
    assert saved_step(tmp_path) == 10
    assert [p.name for p in (tmp_path / "state").iterdir()] == ["train_state.safetensors"]
    train(Context(tmp_path), tmp_path)
    assert lines(tmp_path) == lines(undisturbed)


def test_a_full_disk_while_saving_is_known_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """safetensors words the system's error; callers that treat a full disk apart need its number."""
    import qvgen.training.state as state

    def full(*_: Any) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(state, "save_file", full)
    with pytest.raises(OSError, match="No space left on device") as caught:
        train(Context(tmp_path), tmp_path)
    assert caught.value.errno == errno.ENOSPC
    assert list((tmp_path / "state").iterdir()) == []


def test_a_parameter_without_gradient_is_resumed_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Adam has no state for it, so neither has the file."""
    plain = killed_training.model

    def with_spare() -> torch.nn.Module:
        made = plain()
        made.register_parameter("spare", torch.nn.Parameter(torch.ones(3)))
        return made

    monkeypatch.setattr(killed_training, "model", with_spare)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    for folder in (whole, broken):
        folder.mkdir()
    train(Context(whole), whole)
    with pytest.raises(Interrupted):
        train(Fragile(broken, kill_at=30), broken)
    train(Context(broken), broken)
    assert lines(broken) == lines(whole)


def test_a_state_that_lacks_a_tensor_is_an_error_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        train(Fragile(tmp_path, kill_at=30), tmp_path)
    file = state_file(tmp_path)
    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata()
    tensors = load_file(file)
    name = next(name for name in tensors if name.startswith("exp_avg_sq/"))
    save_file({key: value for key, value in tensors.items() if key != name}, file, metadata)
    with pytest.raises(ValueError, match=rf"no readable training state \({name} is missing\); delete it"):
        train(Context(tmp_path), tmp_path)
