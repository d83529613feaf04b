"""A training that was killed goes on to the same bits; a state of another one is refused."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from qvgen.training.state_file import StateWriter
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
    """Opened once: the library opens a file twice, and the next state may take its place between."""
    content = state_file(folder).read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    step: int = json.loads(header["__metadata__"]["train_state"])["step"]
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
        ({"weights": (0, 0)}, r"model was '\w+', is '\w+'"),
        ({"weights": (-1, -1)}, r"model was '\w+', is '\w+'"),
    ],
)
def test_the_state_of_another_training_is_refused(
    change: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Interrupted):
        train(Fragile(tmp_path, kill_at=30), tmp_path)
    ctx, changes = Context(tmp_path), dict(change)
    ctx.seed = changes.pop("seed", ctx.seed)
    if where := changes.pop("weights", None):
        other = killed_training.model()
        with torch.no_grad():
            other[0].weight[where] += 1e-3  # type: ignore[index]
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
    real, calls = StateWriter.finish, []

    def torn(writer: Any) -> None:
        calls.append(writer)
        if len(calls) == 3:
            writer._file.truncate(1000)
            raise Interrupted
        real(writer)

    monkeypatch.setattr(StateWriter, "finish", torn)
    with pytest.raises(Interrupted):
        train(Context(tmp_path), tmp_path)
    monkeypatch.undo()
    assert saved_step(tmp_path) == 10
    assert [p.name for p in (tmp_path / "state").iterdir()] == ["train_state.safetensors"]
    train(Context(tmp_path), tmp_path)
    assert lines(tmp_path) == lines(undisturbed)


def test_a_full_disk_while_saving_is_known_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Callers that treat a full disk apart need its number."""

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(StateWriter, "put", full)
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


@pytest.fixture
def broken_off(tmp_path: Path) -> Path:
    """The folder of a training with a state, of step 10."""
    with pytest.raises(Interrupted):
        train(Fragile(tmp_path, kill_at=25), tmp_path)
    return tmp_path


def rewrite(folder: Path, change: Any) -> None:
    """Write the state anew, checksum and all, as a buggy or hostile program would.

    ``change`` is called with the header and the tensors and returns the header to write.
    """
    file = state_file(folder)
    with safe_open(file, framework="pt") as opened:
        header = json.loads(opened.metadata()["train_state"])
    tensors = load_file(file)
    text = json.dumps(change(header, tensors))
    digest = hashlib.sha256(text.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    save_file(tensors, file, {"train_state": text, "sha256": digest.hexdigest()})


def test_the_file_is_what_safetensors_makes_of_it(broken_off: Path, tmp_path: Path) -> None:
    """Written tensor by tensor: every tensor at a multiple of its size, nothing between or after them."""
    file = state_file(broken_off)
    tensors, again = load_file(file), tmp_path / "again.safetensors"
    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata()
    save_file(tensors, again, metadata)
    assert file.stat().st_size == pytest.approx(again.stat().st_size, abs=8)  # padding of the head
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    entries = {k: v for k, v in json.loads(data[8 : 8 + length]).items() if k != "__metadata__"}
    assert (8 + length) % 8 == 0 and entries.keys() == tensors.keys()
    spans = sorted(entry["data_offsets"] for entry in entries.values())
    assert [begin for begin, _ in spans] == [0, *(end for _, end in spans[:-1])]
    assert spans[-1][1] == len(data) - 8 - length
    for name, entry in entries.items():
        assert entry["data_offsets"][0] % tensors[name].element_size() == 0


def test_rewriting_alone_does_no_harm(broken_off: Path, undisturbed: Path) -> None:
    rewrite(broken_off, lambda header, tensors: header)
    train(Context(broken_off), broken_off)
    assert lines(broken_off) == lines(undisturbed)


TENSORS = [
    "exp_avg_sq/0.weight", "step/0.weight", "model/0.phi.gamma", "log/sums", "random/cpu", "model/3.bias",
]  # fmt: skip


@pytest.mark.parametrize("name", TENSORS)
@pytest.mark.parametrize("how", ["is missing", r"is \(7, 1\), not", "holds bool"])
def test_a_tensor_of_the_state_that_is_not_right_is_named(how: str, name: str, broken_off: Path) -> None:
    def change(header: Any, tensors: Any) -> Any:
        if how == "is missing":
            del tensors[name]
        elif how == "holds bool":
            tensors[name] = tensors[name].bool()
        else:
            tensors[name] = torch.zeros(7, 1, dtype=tensors[name].dtype)
        return header

    rewrite(broken_off, change)
    with pytest.raises(ValueError, match=rf"no readable training state \({name} {how}.*\); delete it"):
        train(Context(broken_off), broken_off)


def test_a_surplus_tensor_is_named(broken_off: Path) -> None:
    rewrite(broken_off, lambda header, tensors: tensors.update(extra=torch.zeros(2)) or header)
    with pytest.raises(ValueError, match=r"no readable training state \(extra is surplus\); delete it"):
        train(Context(broken_off), broken_off)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda header: [header], "its header is no mapping"),
        (lambda header: {**header, "step": -3}, "its step is -3, below zero"),
        (lambda header: {**header, "step": 37}, "step 37 of 37"),
        (lambda header: {**header, "step": 0}, "step 0 of 37"),
        (lambda header: {**header, "step": "5"}, "its step is '5'"),
        (lambda header: {**header, "log": None}, "its log is None"),
        (lambda header: {**header, "log": {**header["log"], "lines": -1}}, "its lines is -1, below zero"),
        (lambda header: {**header, "log": {**header["log"], "losses": 3}}, "its losses is 3"),
        (lambda header: {**header, "random": ["cpu", "mps"]}, "random/mps is missing"),
        (lambda header: {**header, "random": [["cpu"]]}, "its random states have no names"),
        (lambda header: {k: v for k, v in header.items() if k != "step"}, "its step is None"),
        (lambda header: {k: v for k, v in header.items() if k != "identity"}, "its identity is None"),
    ],
)
def test_a_header_that_is_not_right_is_an_error(change: Any, reason: str, broken_off: Path) -> None:
    rewrite(broken_off, lambda header, tensors: change(header))
    with pytest.raises(ValueError) as caught:
        train(Context(broken_off), broken_off)
    assert "train_state.safetensors is no readable training state" in str(caught.value)
    assert reason in str(caught.value)


def test_one_flipped_bit_of_a_weight_is_noticed(broken_off: Path) -> None:
    file = state_file(broken_off)
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    file.write_bytes(data)
    with pytest.raises(ValueError, match="altered since it was written: its checksum differs"):
        train(Context(broken_off), broken_off)


def test_a_diverged_training_leaves_the_older_state(broken_off: Path) -> None:
    """Steps are logged every 4 and saved every 5: the weights are NaN at a save, not at a log line."""

    class Poisoned(Context):
        drawn = 0

        def predict(self, transformer: torch.nn.Module, batch: Any) -> torch.Tensor:
            if transformer.training:
                self.drawn += 1
            if self.drawn == 9:  # the first pass of step 15
                with torch.no_grad():
                    transformer.get_parameter("3.bias").fill_(float("nan"))
            return super().predict(transformer, batch)

    before = state_file(broken_off).read_bytes()
    with pytest.raises(
        ValueError, match=r"training diverged: .* holds NaN or infinity after 15 steps; lower lr"
    ):
        train(Poisoned(broken_off), broken_off)
    assert state_file(broken_off).read_bytes() == before and saved_step(broken_off) == 10
