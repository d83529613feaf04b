"""The harness on a GPU: batches, seeds, arithmetic, cost, workers. The same checks hold on a CPU
where they make sense, so that a machine without a GPU at least sees that the tests are sound.
"""

from __future__ import annotations

import contextlib
import copy
import importlib.metadata
import itertools
import math
import time
import weakref
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from evalharness.api import Prompt
from evalharness.executor import SubprocessExecutor, Task, WorkerSpec
from evalharness.models import tinyworld
from evalharness.models.tinyworld import CHECKPOINTS, LoadedTinyWorld, TinyWorld
from evalharness.session import Session
from evalharness.stages import generate, profile
from evalharness.stages.context import StageContext
from evalharness.timing import alternate

pytest.importorskip("diffusers")

CUDA = pytest.param("cuda", marks=pytest.mark.cuda)
CAPTIONS = [
    "a red star moving left over a snowy field",
    "a blue box spinning over a desert",
    "a yellow moon standing still over an ocean",
    "a green heart bouncing over a city",
]
SEEDS = [11, 2**62 + 5, 12, 11]
CELL = {"model": "tinyworld", "method": "bf16", "w_bits": 16, "a_bits": 16, "seed": 0, "options": {}}
REFERENCE: dict[str, Any] = {"cell": CELL, "checkpoint": None, "key": "reference"}


@pytest.fixture(scope="module", params=["cpu", CUDA])
def session(request: pytest.FixtureRequest) -> Iterator[Session]:
    """One with tinyworld in it, three steps a video; made without entry points."""
    made = Session(WorkerSpec(model="tinyworld", protocol="none", device=request.param, skip_layers="std"))
    made.model = TinyWorld()
    made.prompts = {
        f"{i}": Prompt(id=f"{i}", text=text, dimensions=("none",)) for i, text in enumerate(CAPTIONS)
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tinyworld, "SETTINGS", replace(tinyworld.SETTINGS, steps=3))
        loaded = made.loaded
        assert isinstance(loaded, LoadedTinyWorld)
        loaded.training_clips = 4
        yield made


def videos(session: Session, folder: Path, order: list[int], batch_size: int) -> dict[int, np.ndarray]:
    """The generate stage's frames of those captions, by caption, without the video encoder."""
    samples = [
        {
            "prompt_id": f"{i}",
            "text": CAPTIONS[i],
            "seed": SEEDS[i],
            "path": str(folder / f"{i}.raw"),
            "sample": f"{i}",
        }
        for i in order
    ]
    payload = {**REFERENCE, "batch_size": batch_size, "samples": samples}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generate, "encode_video", lambda frames, fps: frames.tobytes())
        made = generate.work(session, payload)["videos"]
    assert [facts["bytes"] for facts in made] == [17 * 48 * 48 * 3] * len(order)
    assert all(facts["ms"] > 0 for facts in made)
    raw = {i: np.frombuffer((folder / f"{i}.raw").read_bytes(), np.uint8) for i in order}
    return {i: frames.astype(int) for i, frames in raw.items()}


def test_a_batch_makes_the_videos_that_single_calls_make(session: Session, tmp_path: Path) -> None:
    """Other batch sizes take other kernels, so the last bits may differ, and a level of 255 with them."""
    batch = videos(session, tmp_path, [0, 1, 2, 3], 4)
    for i in range(4):
        alone = videos(session, tmp_path, [i], 1)[i]
        assert np.abs(batch[i] - alone).max() <= 2
        assert np.abs(batch[i] - alone).mean() < 0.1
    assert all(np.abs(batch[a] - batch[b]).mean() > 1 for a, b in itertools.combinations(range(4), 2))


def test_neither_padding_nor_the_place_in_a_batch_changes_a_video(session: Session, tmp_path: Path) -> None:
    full = videos(session, tmp_path, [0, 1, 2, 3], 4)
    for order in ([3, 1], [2], [1, 2, 3, 0]):
        part = videos(session, tmp_path, order, 4)
        assert all(np.abs(part[i] - full[i]).max() <= 1 for i in order)


def test_the_noise_of_a_seed_is_the_same_on_every_device(session: Session) -> None:
    """Against the bundled model on a CPU: a GPU rounds otherwise but draws the same noise."""
    if session.spec.device == "cpu":
        pytest.skip("compares another device with the CPU")
    ours = session.full_precision().generate(CAPTIONS[:1], SEEDS[:1]).astype(int)
    theirs = TinyWorld().load("cpu").generate(CAPTIONS[:1], SEEDS[:1]).astype(int)
    assert np.abs(ours - theirs).max() <= 8
    assert np.abs(ours - theirs).mean() < 0.5


def test_a_bundled_checkpoint_computes_the_same_function(session: Session) -> None:
    """All its numbers are the same; its output is near only, since a last bit may turn an activation's
    code, and from there on others. Perturbing the input by 1e-6 moves it by 6 % on one device.
    """
    from baselines.lsq import LSQ

    folder = CHECKPOINTS / "lsq-w3a3"
    device, inputs = session.spec.device, session.loaded.step_inputs()
    ours = LSQ(w_bits=3, a_bits=3).load(session.fresh_transformer(), folder)
    assert {t.device.type for t in (*ours.parameters(), *ours.buffers())} == {device}
    on_cpu = copy.deepcopy(session.pristine).cpu()
    theirs = LSQ(w_bits=3, a_bits=3).load(on_cpu, folder)
    moved = {k: v.cpu() if isinstance(v, torch.Tensor) else v for k, v in inputs.items()}
    pairs = zip((*ours.parameters(), *ours.buffers()), (*theirs.parameters(), *theirs.buffers()), strict=True)
    assert all(torch.equal(a.cpu(), b) for a, b in pairs)
    with torch.inference_mode():
        a, b = ours(**inputs)[0].cpu(), theirs(**moved)[0]
    assert (a - b).norm() < 0.12 * b.norm()


def test_a_method_finds_all_of_its_context_on_the_device(session: Session, tmp_path: Path) -> None:
    context = StageContext(session, 3, tmp_path / "train.jsonl")
    batch = next(context.batches(2))
    tensors = [batch.target, *(v for v in batch.inputs.values() if isinstance(v, torch.Tensor))]
    tensors += [*context.teacher().parameters(), *session.fresh_transformer().parameters()]
    assert {tensor.device.type for tensor in tensors} == {session.spec.device}
    with torch.no_grad():
        prediction = context.predict(context.teacher(), batch)
    assert prediction.shape == batch.target.shape
    assert torch.equal(next(context.batches(2)).target, batch.target)


def test_float32_stays_float32(session: Session) -> None:
    """TF32, with its ten bits of mantissa, would be wrong by about 1e-3."""
    device = session.spec.device
    assert session.loaded is not None  # from here on the arithmetic is fixed
    generator = torch.Generator().manual_seed(0)
    x, w = (torch.randn(shape, generator=generator) for shape in ((1, 64, 6, 16, 16), (64, 64, 3, 3, 3)))
    a, b = (torch.randn(512, 512, generator=generator) for _ in range(2))
    volume = torch.nn.functional.conv3d(x.to(device), w.to(device)).cpu().double()
    exact = torch.nn.functional.conv3d(x.double(), w.double())
    assert (volume - exact).norm() < 1e-5 * exact.norm()
    product = (a.to(device) @ b.to(device)).cpu().double()
    assert (product - a.double() @ b.double()).norm() < 1e-5 * product.norm()


@pytest.mark.cuda
def test_a_profile_agrees_with_the_wall_clock_and_the_allocator(session: Session) -> None:
    if session.spec.device != "cuda":
        pytest.skip("of a GPU")
    record = profile.work(session, REFERENCE)
    module, inputs = session.full_precision().transformer, session.loaded.step_inputs()

    def wall_and_peak() -> tuple[float, int, int]:
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        module(**inputs)
        torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated()
        return (time.perf_counter() - start) * 1000, peak, peak - before

    with torch.inference_mode():
        measured = [wall_and_peak() for _ in range(15)]
    wall = float(np.median([each[0] for each in measured]))
    assert 0.3 * wall < record["step_ms"] < 2 * wall
    assert record["process_mem_mb"] == pytest.approx(max(each[1] for each in measured) / 1e6, rel=0.05)
    assert record["step_mem_mb"] == pytest.approx(max(each[2] for each in measured) / 1e6, rel=0.05, abs=0.5)
    assert record["peak_mem_mb"] == pytest.approx(record["executed_mb"] + record["step_mem_mb"], abs=2e-3)
    weights = sum(p.numel() * 4 for p in module.parameters()) / 1e6
    assert record["executed_mb"] == pytest.approx(weights, rel=0.05)
    assert record["device"] == torch.cuda.get_device_name()


@pytest.mark.cuda
def test_work_that_is_only_queued_is_timed_whole() -> None:
    """A call returns at once; the device is busy for milliseconds more."""
    a = torch.randn(4096, 4096, device="cuda")

    def step() -> None:
        for _ in range(8):
            torch.mm(a, a)

    step()
    torch.cuda.synchronize()
    start = time.perf_counter()
    step()
    returned = time.perf_counter() - start
    torch.cuda.synchronize()
    wall = time.perf_counter() - start
    timed = float(np.median(alternate({"": step}, "cuda", most=15, most_seconds=1.5)[""].seconds))
    assert timed > 2 * returned
    assert 0.5 * wall < timed < 1.5 * wall


@pytest.mark.cuda
@pytest.mark.skipif(
    not importlib.metadata.entry_points(group="evalharness.models"), reason="the package is not installed"
)
def test_a_worker_process_uses_the_gpu() -> None:
    spec = WorkerSpec(model="tinyworld", protocol="tinyworld", device="cuda", skip_layers="std")
    executor = SubprocessExecutor(spec, 2)
    try:
        tasks = [Task(kind="profile", key="bf16-s0", payload=REFERENCE)]
        [outcome] = executor.run(tasks, lambda task, event: None, width=1)
    finally:
        executor.close()
    assert outcome.failure is None, outcome.traceback
    assert outcome.value["device"] == torch.cuda.get_device_name()
    assert outcome.value["step_ms"] > 0


@pytest.mark.cuda
def test_the_driver_counts_more_than_the_allocator() -> None:
    """The context is in it, so it is more even where the allocator gave everything back."""
    from evalharness.memory import peak_within

    with peak_within("cuda") as peak:
        held = torch.empty(2**28, dtype=torch.uint8, device="cuda")
    assert peak.allocated is not None and peak.reserved is not None and peak.device is not None
    assert len(held) <= peak.allocated <= peak.reserved < peak.device
    del held
    torch.cuda.empty_cache()
    with peak_within("cuda") as after:
        pass
    assert after.device is not None and 0 < after.device <= peak.device - 2**28


class SmallMemory(TorchDispatchMode):
    """A memory on a CPU that has room for so many bytes, and says what a GPU says when more is asked for.

    Attributes:
        peak: the most bytes that tensors made within it held at a time.
    """

    def __init__(self, most: float = math.inf) -> None:
        super().__init__()
        self.most, self.held, self.peak = most, 0, 0
        self._users: Counter[int] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor):
                self._take(tensor, tensor.untyped_storage())
        if self.held > self.most:
            raise torch.OutOfMemoryError(f"out of memory: {self.held} bytes of {self.most:.0f}")
        self.peak = max(self.peak, self.held)
        return made

    def _take(self, tensor: torch.Tensor, storage: Any) -> None:
        place, size = storage.data_ptr(), storage.nbytes()
        if not self._users[place]:
            self.held += size
        self._users[place] += 1
        weakref.finalize(tensor, self._release, place, size)

    def _release(self, place: int, size: int) -> None:
        self._users[place] -= 1
        if not self._users[place]:
            self.held -= size


@contextlib.contextmanager
def room(device: str, most: float) -> Iterator[None]:
    """Within it the device has that many bytes; on a GPU the allocator itself refuses more."""
    if device == "cpu":
        with SmallMemory(most):
            yield
        return
    torch.cuda.empty_cache()
    whole = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(most / whole)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def taken(session: Session, batch_size: int, folder: Path) -> tuple[float, float, dict[int, np.ndarray]]:
    """Bytes that a batch certainly needs, bytes that certainly do for it, and what it makes."""
    if session.spec.device == "cpu":
        with SmallMemory() as memory:
            made = videos(session, folder, [0, 1], batch_size)
        return memory.peak, memory.peak, made
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    made = videos(session, folder, [0, 1], batch_size)
    return torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved(), made


def test_out_of_memory_within_the_model_halves_the_batch(session: Session, tmp_path: Path) -> None:
    """The sampler itself runs out, somewhere in the middle of it: on a GPU by a cap on its allocator."""
    large = 4 if session.spec.device == "cpu" else 64  # so that the small batch fits by far
    small = large // 4
    too_little, _, _ = taken(session, large, tmp_path)
    _, enough, plain = taken(session, small, tmp_path)
    assert enough < 0.8 * too_little
    weights = copy.deepcopy(session.loaded.transformer.state_dict())
    made: list[dict[str, Any]] = []
    work = generate.work
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generate, "work", lambda *given: made.append(work(*given)) or made[-1])
        try:
            with room(session.spec.device, (enough + too_little) / 2):
                found = videos(session, tmp_path, [0, 1], large)
            limit = session.batch_limit
        finally:
            session.batch_limit = None
    assert limit is not None and small <= limit < large
    assert [facts["batch"] for facts in made[0]["videos"]] == [limit] * 2, "recorded with each video"
    for i, frames in found.items():
        assert np.abs(frames - plain[i]).max() <= 2 and np.abs(frames - plain[i]).mean() < 0.1
    now = session.loaded.transformer.state_dict()
    assert all(torch.equal(now[name], tensor) for name, tensor in weights.items())


def test_out_of_memory_with_one_video_is_an_error(session: Session, tmp_path: Path) -> None:
    """On a GPU one of tinyworld's fits into what the allocator holds anyway."""
    if session.spec.device != "cpu":
        pytest.skip("cannot be made so small")
    try:
        with room("cpu", 100_000), pytest.raises(torch.OutOfMemoryError, match="out of memory"):
            videos(session, tmp_path, [0, 1], 2)
    finally:
        session.batch_limit = None
