"""What a large training needs: each option changes where things lie and when they move, and no number."""

from __future__ import annotations

import dataclasses
import errno
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from qvgen.api import quantize_
from qvgen.diverged import DivergedError
from qvgen.training import background, host_moments, state, state_file
from qvgen.training.checkpointing import set_gradient_checkpointing
from qvgen.training.pinned import HostMemory
from qvgen.training.recipe import TrainRecipe
from qvgen.training.sharding import blocks
from qvgen.training.teacher import HostBlock
from tests.qvgen import scaled_training
from tests.qvgen.killed_training import Context, train
from tests.qvgen.scaled_training import QUANT, WanContext, wan
from tests.qvgen.test_resume import Fragile, Interrupted, lines, saved_step
from tests.qvgen.test_resume import state_file as state_file_of

REPOSITORY = Path(__file__).parents[2]


def scaled(folder: Path, kind: str) -> dict[str, Any]:
    """What two processes find; see ``scaled_training``."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [sys.executable, *launcher, scaled_training.__file__, str(folder), kind]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads((folder / "found.json").read_text())
    return found


@pytest.mark.slow
def test_two_processes_block_by_block(tmp_path: Path) -> None:
    """A start and an end by blocks are those of the whole model; all options together give the same bits."""
    found = scaled(tmp_path, "cpu")
    assert len(found["starts"]) == 8
    for differing, surplus, drawn_alike, left_in_student in found["starts"].values():
        assert differing == [] and surplus == []
        assert drawn_alike, "torch's generator is where quantize_ leaves it"
        assert left_in_student == 0
    assert found["ends"] == []
    held = found["held"]
    assert held["block"] < held["most"] < 1.2 * held["block"] < held["whole"] / 4
    assert found["bad"]["finite"]
    assert found["bad"]["steps"] == [[1, None], [2, None], [4, 1]]
    trained = found["trainings"]
    assert trained.keys() == {"plain", "all", "resumed"} and len(trained["plain"]["log"]) == 4
    for name in ("all", "resumed"):
        assert trained[name]["log"] == trained["plain"]["log"], name
        assert trained[name]["weights"] == trained["plain"]["weights"], name
    assert trained["all"]["saved"] == 2


class Counted(TorchDispatchMode):
    """How often torch's attention runs forward."""

    calls = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.__name__
        self.calls += "scaled_dot_product" in name and "backward" not in name
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_gradients_are_the_same_and_attention_is_not_computed_again(precision: str, tmp_path: Path) -> None:
    found = {}
    for mode in ("off", "nothing", "attention"):
        ctx = WanContext(tmp_path, torch.device("cpu"))
        student = quantize_(wan(), QUANT).train()
        if mode != "off":
            set_gradient_checkpointing(student, True, keep=mode)  # type: ignore[arg-type]
        with Counted() as counted:
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
                out = ctx.predict(student, next(ctx.batches(2)))
            out.float().square().mean().backward()
        found[mode] = counted.calls, [p.grad for p in student.parameters()]
    assert all(g is not None and bool(g.any()) for g in found["off"][1][:4])
    for mode in ("nothing", "attention"):
        for ours, theirs in zip(found[mode][1], found["off"][1], strict=True):
            assert torch.equal(ours, theirs)  # type: ignore[arg-type]
    once = found["off"][0]
    assert once == 2 * 2, "two blocks of two attentions"
    assert (found["nothing"][0], found["attention"][0]) == (2 * once, once)


def test_a_model_that_cannot_keep_attention_is_told() -> None:
    class Own(nn.Linear):
        def enable_gradient_checkpointing(self) -> None: ...

    with pytest.raises(ValueError, match="checkpointing_keeps: attention: no module of Own has"):
        set_gradient_checkpointing(Own(2, 2), True, keep="attention")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"checkpointing_keeps": "attention"}, "says nothing without gradient_checkpointing"),
        ({"teacher": "host", "compile": "default"}, "teacher: host does not go with compile"),
        ({"offload": "moments", "compile": "graph"}, "offload does not go with compile: graph"),
        ({"skip_bad_steps": 2, "compile": "graph"}, "skip_bad_steps does not go with compile: graph"),
        ({"skip_bad_steps": -1}, "skip_bad_steps is -1"),
        ({"offload": "all"}, "offload is 'all'"),
        ({"offload_share": 0.0}, "offload_share is 0"),
        ({"teacher": "disk"}, "teacher is 'disk'"),
        ({"save_async": "no"}, "save_async is 'no'"),
    ],
)
def test_recipes_that_make_no_sense(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainRecipe(**wrong)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    train(Context(folder), folder)
    return folder


def assert_as(folder: Path, other: Path) -> None:
    assert lines(folder) == lines(other)
    assert (folder / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()


def test_moments_on_the_host_train_to_the_same_bits(
    tmp_path: Path, undisturbed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In parts of one parameter; broken off, and gone on with and without them."""
    monkeypatch.setattr(host_moments, "_ELEMENTS_AT_ONCE", 1)
    for first, second in (("moments", "moments"), ("moments", "off"), ("off", "moments")):
        folder = tmp_path / f"{first}-{second}"
        folder.mkdir()
        with pytest.raises(Interrupted):
            train(Fragile(folder, kill_at=28), folder, offload=first)
        train(Context(folder), folder, offload=second)
        assert_as(folder, undisturbed)


def test_moments_between_steps_are_plain_tensors_of_the_host() -> None:
    weight = nn.Parameter(torch.randn(5, 3))
    groups = [{"params": [weight], "name": "weights"}]
    ours = host_moments.HostMomentsAdamW(groups, lr=1e-2, fused=True)
    twin = nn.Parameter(weight.detach().clone())
    plain = torch.optim.AdamW([twin], lr=1e-2, fused=True)
    for _ in range(3):
        weight.grad = torch.randn(5, 3)
        twin.grad = weight.grad.clone()
        ours.step()
        plain.step()
        assert torch.equal(weight, twin)
        assert ours.state[weight].keys() == plain.state[twin].keys()
        for key, value in plain.state[twin].items():
            assert torch.equal(ours.state[weight][key], value)
    assert [g["params"] for g in ours.param_groups] == [[weight]]


def test_a_share_of_the_moments_on_the_host_gives_the_same_bits(tmp_path: Path, undisturbed: Path) -> None:
    for share in (0.4, 1e-9):
        folder = tmp_path / str(share)
        folder.mkdir()
        with pytest.raises(Interrupted):
            train(Fragile(folder, kill_at=28), folder, offload="moments", offload_share=share)
        train(Context(folder), folder, offload="moments", offload_share=0.7)
        assert_as(folder, undisturbed)


def test_the_first_weights_of_a_share_rest() -> None:
    """Of 10, 20, 30 and 40 numbers: 0.4 of 100 are reached within the third."""
    weights = [nn.Parameter(torch.zeros(size)) for size in (10, 20, 30, 40)]
    scale = nn.Parameter(torch.zeros(3))
    groups = [{"params": weights, "name": "weights"}, {"params": [scale], "name": "scales"}]
    for share, resting in ((0.4, 3), (1e-9, 1), (0.1, 1), (1.0, 4)):
        optimizer = host_moments.HostMomentsAdamW(groups, lr=1e-2, share=share)
        assert optimizer.resting == {id(weight) for weight in weights[:resting]}


def test_pinned_memory_is_filled_before_more_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors of 3000 and 1000 float32 in chunks of 16 KiB: one of each fits a chunk, none overlap."""
    monkeypatch.setattr(HostMemory, "_chunk", lambda self, size: torch.empty(size, dtype=torch.uint8))
    host, shapes = HostMemory(1 << 14), [(3000,), (30, 100), (1000,), (10, 100)]
    made = [host.like(torch.empty(shape, dtype=torch.float32), pinned=True) for shape in shapes]
    for number, tensor in enumerate(made):
        tensor.fill_(number)
    assert [tuple(tensor.shape) for tensor in made] == shapes
    assert all(bool((tensor == number).all()) for number, tensor in enumerate(made))
    chunks = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in made}
    assert list(chunks.values()) == [1 << 14] * 2
    assert host.like(torch.empty(1 << 14), pinned=True).untyped_storage().nbytes() == 1 << 16
    assert host._open == [], "full ones are not held"
    small = [host.like(torch.empty(5, dtype=torch.bfloat16), pinned=True) for _ in range(2)]
    assert [tensor.storage_offset() * 2 for tensor in small] == [0, 512]
    assert host.like(torch.empty(2, 3).T, pinned=False).stride() == (1, 3)


def test_a_block_that_rests_answers_as_before() -> None:
    model = wan()
    batch = next(WanContext(Path(), torch.device("cpu")).batches(2))
    with torch.no_grad():
        before = model(**batch).sample
        host = HostMemory()
        rests = [HostBlock(block, torch.device("cpu"), host) for block in blocks(model)]
        assert len(rests) == 2
        assert torch.equal(model(**batch).sample, before)
        kept = {id(p): p.data_ptr() for p in model.parameters()}
        with pytest.raises(AttributeError):
            model.blocks[0](torch.zeros(1, 2, 7), None, None, None)  # type: ignore[operator, index]
    assert {id(p): p.data_ptr() for p in model.parameters()} == kept


# In the background.


real_put, real_finish = state_file.StateWriter.put, state_file.StateWriter.finish


def slowly(writer: Any, name: str, tensor: torch.Tensor) -> None:
    time.sleep(0.001)
    real_put(writer, name, tensor)


def test_states_written_in_the_background(
    tmp_path: Path, undisturbed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One at a time, from a copy: steps go on while it is written, and what is read is of its step."""
    running, most, threads = set(), 0, set()

    def watched(writer: Any, name: str, tensor: torch.Tensor) -> None:
        nonlocal most
        running.add(id(writer))
        most = max(most, len(running))
        threads.add(threading.current_thread().name)
        before = tensor.clone()
        time.sleep(0.002)
        assert torch.equal(tensor, before), "a copy, not the weights"
        real_put(writer, name, tensor)

    def finished(writer: Any) -> None:
        running.discard(id(writer))
        real_finish(writer)

    monkeypatch.setattr(state_file.StateWriter, "put", watched)
    monkeypatch.setattr(state_file.StateWriter, "finish", finished)
    with pytest.raises(Interrupted):
        train(Fragile(tmp_path, kill_at=28), tmp_path, save_async=True, save_every=1)
    assert saved_step(tmp_path) == 14, "what was being written when the training failed is whole"
    assert most == 1 and threads == {"train-state"}
    train(Context(tmp_path), tmp_path, save_async=True)
    assert_as(tmp_path, undisturbed)


def test_an_error_in_the_background_comes_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the next step that could save, and at the end; the older state stays."""
    calls = []

    def full(writer: Any) -> None:
        calls.append(writer)
        if len(calls) == fails_at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real_finish(writer)

    monkeypatch.setattr(state_file.StateWriter, "finish", full)
    for fails_at, saved in ((2, 5), (7, 30)):  # 7: of step 35, the last one of 37
        calls.clear()
        folder = tmp_path / str(fails_at)
        folder.mkdir()
        with pytest.raises(OSError, match="No space left on device"):
            train(Context(folder), folder, save_async=True)
        assert saved_step(folder) == saved
        assert [p.name for p in (folder / "state").iterdir()] == ["train_state.safetensors"]


def test_timed_saves_wait_for_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are put off while one is being written, and so never hold the training up."""
    release, begun = threading.Event(), []

    def held(writer: Any) -> None:
        begun.append(writer)
        assert release.wait(300)
        real_finish(writer)

    class Ends(Context):
        def track(self, steps: range, what: str) -> Iterator[int]:
            yield from steps[:-1]
            release.set()
            yield steps[-1]

    monkeypatch.setattr(state, "_SHARE_OF_TIME", 1e9)
    monkeypatch.setattr(state_file.StateWriter, "finish", held)
    train(Ends(tmp_path), tmp_path, save_async=True, save_every=0, save_every_s=1e-9)
    assert len(begun) == 1 and saved_step(tmp_path) == 1


def test_work_in_the_background_one_by_one() -> None:
    one = background.Background()
    done: list[int] = []

    def fail() -> None:
        raise KeyError("first")

    one.start(fail)
    with pytest.raises(KeyError, match="first"):
        one.start(lambda: done.append(1))
    assert done == [], "not begun on top of an error"
    one.start(lambda: done.append(2))
    one.wait()
    one.wait()
    assert done == [2] and not one.busy


def _until_killed(folder: Path) -> None:
    state_file.StateWriter.put = slowly  # type: ignore[method-assign]
    train(Context(folder), folder, save_async=True, save_every=1, offload="moments")


@pytest.mark.slow
def test_killed_at_any_time_while_writing_in_the_background(tmp_path: Path, undisturbed: Path) -> None:
    """SIGKILL at random moments, most of them within a write; whatever is left is gone on from."""
    processes: Any = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload([__name__])
    moments, kills = random.Random(5), 0
    for _ in range(40):
        before = saved_step(tmp_path) if state_file_of(tmp_path).exists() else 0
        process = processes.Process(target=_until_killed, args=(tmp_path,))
        process.start()
        while kills < 8 and process.is_alive():
            time.sleep(0.002)
            if state_file_of(tmp_path).exists() and saved_step(tmp_path) > before:
                time.sleep(0.1 * moments.random())
                process.kill()
                kills += 1
                break
        process.join(300)
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
    assert process.exitcode == 0 and kills >= 3
    assert_as(tmp_path, undisturbed)
    assert [p.name for p in (tmp_path / "state").iterdir()] == ["train_state.safetensors"]


class Bad(Context):
    """Training passes of the steps ``bad``, from 0, give NaN; the first weights at each step are kept."""

    bad: tuple[int, ...] = ()

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        del self.state_folder
        self.passes, self.seen = 0, []

    def predict(self, transformer: nn.Module, batch: Any) -> torch.Tensor:
        out = super().predict(transformer, batch)
        if transformer.training:
            self.passes += 1
            if self.passes % 2:
                self.seen.append([p.detach().clone() for p in transformer.parameters()])
            if (self.passes - 1) // 2 in self.bad:
                out = out * torch.nan
        return out


def test_a_bad_step_is_left_out(tmp_path: Path) -> None:
    ctx = Bad(tmp_path)
    ctx.bad = (9, 10, 18)
    train(ctx, tmp_path, skip_bad_steps=2, log_every=1)
    changed = [any(not torch.equal(a, b) for a, b in zip(*pair, strict=True)) for pair in pairwise(ctx.seen)]
    assert [step for step, moved in enumerate(changed) if not moved] == [9, 10, 18]
    told = {record["step"]: record["skipped"] for record in lines(tmp_path) if "skipped" in record}
    assert told == {12: 2, 20: 1} and len(lines(tmp_path)) == 37 - 3
    assert all(torch.isfinite(torch.tensor(record["loss"])) for record in lines(tmp_path))


@pytest.mark.parametrize(
    ("allowed", "message"), [(2, "in the 3 steps up to 12"), (0, "in the steps up to 12")]
)
def test_too_many_bad_steps_end_a_training(allowed: int, message: str, tmp_path: Path) -> None:
    ctx = Bad(tmp_path)
    ctx.bad = (9, 10, 11)
    with pytest.raises(DivergedError, match=message):
        train(ctx, tmp_path, skip_bad_steps=allowed, save_every=0)


def test_a_recipe_with_all_options_resumes_a_state_without(tmp_path: Path, undisturbed: Path) -> None:
    """They are no part of a training's identity."""
    with pytest.raises(Interrupted):
        train(Fragile(tmp_path, kill_at=45), tmp_path)
    assert saved_step(tmp_path) == 20
    train(Context(tmp_path), tmp_path, teacher="sharded", offload="moments", save_async=True)
    assert_as(tmp_path, undisturbed)


def test_the_defaults_are_what_they_were() -> None:
    given = dataclasses.asdict(TrainRecipe())
    new = {"checkpointing_keeps": "nothing", "teacher": "whole", "offload": "off", "save_async": False}
    assert {name: given[name] for name in new} == new
