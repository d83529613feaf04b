"""What the service collects, against NumPy over everything the layers saw."""

from __future__ import annotations

import dataclasses
import itertools
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from evalharness import hessians
from evalharness.calibration import Collector, Statistics, calibrate, needs_key
from evalharness.calibration_files import read_statistics, write_statistics
from evalharness.executor import WorkerSpec
from evalharness.session import Session
from evalharness.stages.context import StageContext
from evalharness.tinyworld import spec

LAYERS = ("to_q", "to_k", "out")


@dataclass(frozen=True)
class Needs:
    layers: tuple[str, ...] = LAYERS
    prompts: int = 3
    buckets: int = 4
    rows: int = 40
    hessian: bool = True
    hessian_rows_per_call: int = 1000


class Attention(nn.Module):
    """q and k read one tensor, the output another one."""

    def __init__(self) -> None:
        super().__init__()
        self.to_q, self.to_k, self.out = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(8, 6)
        self.unused = nn.Linear(6, 6)
        self.seen: list[tuple[int, Tensor, Tensor]] = []

    def forward(self, x: Tensor, timestep: Tensor) -> Tensor:
        mixed = torch.tanh(self.to_q(x)) * self.to_k(x)
        self.seen.append((int(timestep[0]), x.detach().clone(), mixed.detach().clone()))
        out: Tensor = self.out(mixed)
        return out


def runs(model: Attention, spoil: int = -1, steps: tuple[int, ...] = (999, 600, 240)) -> Iterator[int]:
    """Two samples (guidance) of eleven tokens, three steps; run ``spoil`` meets a NaN."""
    for number in itertools.count():
        g = torch.Generator().manual_seed(number)
        for step in steps:
            x = torch.randn(2, 11, 6, generator=g) * (1 + step / 100)
            if number == spoil:
                x[1, 3, 2] = float("nan")
            model(x, timestep=torch.full((2,), step))
        yield number


def track(steps: range, what: str) -> Iterator[int]:
    return iter(steps)


def test_maxima_ranges_and_hessians_are_those_of_all_rows() -> None:
    torch.manual_seed(0)
    model = Attention()
    found = calibrate(model, runs(model), Needs(), 0, track)
    assert list(found) == list(LAYERS) and len(model.seen) == 9
    for name, place in (("to_k", 1), ("out", 2)):
        rows = np.concatenate([entry[place].reshape(-1, entry[place].shape[-1]) for entry in model.seen])
        statistics = found[name]
        wanted = np.zeros((4, rows.shape[1]))
        for step, bucket in ((999, 3), (600, 2), (240, 0)):
            of_step = [entry[place].reshape(-1, rows.shape[1]) for entry in model.seen if entry[0] == step]
            wanted[bucket] = np.abs(np.concatenate(of_step)).max(0)
        np.testing.assert_array_equal(statistics.absmax, wanted.astype(np.float32))
        assert (statistics.low, statistics.high) == (float(rows.min()), float(rows.max()))
        assert statistics.hessian is not None
        np.testing.assert_allclose(statistics.mean, rows.mean(0), atol=1e-5)
        exact = rows.astype(np.float64).T @ rows / len(rows)
        np.testing.assert_allclose(statistics.hessian, exact, rtol=1e-5, atol=1e-5 * np.abs(exact).max())


def test_layers_that_read_one_tensor_are_told() -> None:
    torch.manual_seed(0)
    model = Attention()
    found = calibrate(model, runs(model), Needs(), 0, track)
    assert {name: s.shares_input_with for name, s in found.items()} == {
        "to_q": "to_q",
        "to_k": "to_q",
        "out": "out",
    }
    assert torch.equal(found["to_q"].rows, found["to_k"].rows)


def test_kept_rows_are_a_uniform_sample_of_real_ones() -> None:
    torch.manual_seed(0)
    model = Attention()
    found = calibrate(model, runs(model), Needs(rows=60), 0, track)
    everything = torch.cat([entry[1].reshape(-1, 6) for entry in model.seen])
    rows = found["to_q"].rows
    assert rows.shape == (60, 6) and len(torch.unique(rows, dim=0)) == 60
    index = [int((everything == row).all(1).nonzero()[0, 0]) for row in rows]
    assert len(set(index)) == 60
    counts = np.bincount(np.array(index) // 66, minlength=3)  # rows of each of the three runs
    assert counts.min() >= 10, counts
    few = calibrate(model, runs(model), Needs(rows=1000), 0, track)["to_q"].rows
    assert few.shape == (198, 6), "all there is"


def test_the_same_seed_gives_the_same_and_another_other_rows() -> None:
    def rows(seed: int) -> Tensor:
        torch.manual_seed(0)
        model = Attention()
        return calibrate(model, runs(model), Needs(), seed, track)["out"].rows

    assert torch.equal(rows(1), rows(1)) and not torch.equal(rows(1), rows(2))


def test_hessian_rows_of_a_call_are_limited() -> None:
    torch.manual_seed(0)
    model = Attention()
    needs = Needs(prompts=1, hessian_rows_per_call=2)
    found = calibrate(model, runs(model, steps=(500,)), needs, 0, track)["to_q"].hessian
    rows = model.seen[0][1].reshape(-1, 6)[[0, 21]]
    torch.testing.assert_close(found, rows.T @ rows / 2)


def test_an_input_given_by_name_and_a_plain_timestep_count_too() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.to_q = nn.Linear(6, 6)

        def forward(self, x: Tensor, timestep: float) -> Tensor:
            out: Tensor = self.to_q(input=x)
            return out

    model, x = Named(), torch.randn(2, 5, 6)

    def sampler() -> Iterator[int]:
        model(x, timestep=600.0)
        yield 0

    found = calibrate(model, sampler(), Needs(layers=("to_q",), prompts=1), 0, track)["to_q"]
    wanted = np.zeros((4, 6), np.float32)
    wanted[2] = np.abs(x.numpy().reshape(-1, 6)).max(0)
    np.testing.assert_array_equal(found.absmax, wanted)


@pytest.mark.parametrize("rows", [0, 40])
def test_nothing_kept_holds_on_to_a_whole_input(rows: int) -> None:
    """At 30,000 tokens a view of the first input would be 100 MB a layer."""
    torch.manual_seed(0)
    model = Attention()
    found = calibrate(model, runs(model), Needs(prompts=1, rows=rows, hessian=False), 0, track)
    for statistics in found.values():
        kept = statistics.rows
        assert kept.shape == (rows, kept.shape[1])
        assert kept.untyped_storage().nbytes() == 4 * rows * kept.shape[1]


def test_nan_names_the_first_layer_in_order_of_execution() -> None:
    model = Attention()
    with pytest.raises(ValueError, match=r"layer to_q holds NaN or infinity \(prompt 1\)"):
        calibrate(model, runs(model, spoil=1), Needs(layers=("out", "to_q")), 0, track)
    nn.init.constant_(model.to_q.weight, float("nan"))
    with pytest.raises(ValueError, match=r"layer out holds NaN or infinity \(prompt 0\)"):
        calibrate(model, runs(model), Needs(), 0, track)
    assert not any(module._forward_pre_hooks for module in model.modules()), "no hook is left behind"


def test_names_that_cannot_be_served_are_refused() -> None:
    model = Attention()
    with pytest.raises(ValueError, match="'to_x' is no linear"):
        calibrate(model, runs(model), Needs(layers=("to_x",)), 0, track)
    with pytest.raises(ValueError, match="layer unused was never called"):
        calibrate(model, runs(model), Needs(layers=("unused",)), 0, track)
    with pytest.raises(ValueError, match="gave 2 runs, 3 were asked"):
        calibrate(model, itertools.islice(runs(model), 2), Needs(), 0, track)


def test_every_need_is_part_of_the_key() -> None:
    changes: list[dict[str, object]] = [
        {"layers": ("out",)},
        {"prompts": 4},
        {"buckets": 1},
        {"rows": 41},
        {"hessian_rows_per_call": 999},
    ]
    keys = {needs_key(dataclasses.replace(Needs(), **change), 0) for change in changes}  # type: ignore[arg-type]
    assert len(keys | {needs_key(Needs(), 0), needs_key(Needs(), 1)}) == len(changes) + 2


def test_a_model_without_runs_says_so(toy: Path, tmp_path: Path) -> None:
    session = Session(WorkerSpec(model="toy", protocol="toy", device="cpu", skip_layers="std"))
    with pytest.raises(ValueError, match="model toy cannot calibrate: its plugin lacks calibration_runs"):
        StageContext(session, 0, tmp_path / "log").calibration(Needs(layers=("0",)))


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> Session:
    from evalharness.models import tinyworld

    monkeypatch.setattr(tinyworld, "SETTINGS", dataclasses.replace(tinyworld.SETTINGS, steps=2))
    return Session(WorkerSpec(model="tinyworld", protocol="tinyworld", device="cpu", skip_layers="std"))


def test_tinyworld_calibrates_at_full_precision_and_once(
    tiny: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "transformer_blocks.0.ff.net.2"
    needs = Needs(layers=(name,), prompts=2, buckets=2, rows=32, hessian=False)
    captions: list[str] = []
    pipeline = type(tiny.loaded.pipeline)  # type: ignore[attr-defined]
    call: Callable[..., object] = pipeline.__call__

    def spy(self: object, *args: object, **kwargs: object) -> object:
        captions.append(str(kwargs["prompt"]))
        return call(self, *args, **kwargs)

    monkeypatch.setattr(pipeline, "__call__", spy)
    found = StageContext(tiny, 3, tmp_path / "log").calibration(needs)
    assert found[name].absmax.shape == (2, 960) and bool((found[name].absmax.amax(1) > 1).all())
    assert -0.1701 < found[name].low < -0.169, "the minimum of GELU"
    assert found[name].hessian is None
    assert len(captions) == 2 and " and " not in captions[0]
    held_out = {prompt.text for prompt in tiny.prompts.values()}
    assert not held_out & set(captions)
    assert StageContext(tiny, 3, tmp_path / "log").calibration(needs) is found and len(captions) == 2
    more = StageContext(tiny, 3, tmp_path / "log").calibration(dataclasses.replace(needs, hessian=True))
    assert more[name].hessian is not None and len(captions) == 4
    assert torch.equal(more[name].rows, found[name].rows), "the Hessian changes nothing else"
    assert StageContext(tiny, 3, tmp_path / "log").calibration(needs) is more and len(captions) == 4
    again = StageContext(tiny, 4, tmp_path / "log").calibration(needs)
    assert not torch.equal(again[name].rows, found[name].rows) and len(captions) == 6


def test_the_run_folder_keeps_what_a_worker_found(tiny: Session, tmp_path: Path) -> None:
    """The second worker has the very numbers of the first and samples nothing."""
    names = ("transformer_blocks.0.attn1.to_q", "transformer_blocks.0.attn1.to_k")
    needs = Needs(layers=names, prompts=1, buckets=2, rows=8, hessian=False)

    def context(session: Session) -> StageContext:
        return StageContext(session, 3, tmp_path / "log", calibration_folder=tmp_path / "calibration")

    made = context(tiny).calibration(needs)
    [path] = (tmp_path / "calibration").glob("*.safetensors")
    stamp = path.stat().st_mtime_ns
    tiny.calibration = ("", False, {})
    tiny.loaded.calibration_runs = None  # type: ignore[attr-defined]
    read = context(tiny).calibration(needs)
    for name in names:
        for part in ("absmax", "rows"):
            assert torch.equal(getattr(read[name], part), getattr(made[name], part))
        assert (read[name].low, read[name].high) == (made[name].low, made[name].high)
        assert read[name].hessian is None and read[name].shares_input_with == names[0]
    assert path.stat().st_mtime_ns == stamp

    for change in ({"hessian": True}, {"prompts": 2}, {"rows": 4}):
        tiny.calibration = ("", False, {})
        with pytest.raises(ValueError, match="cannot calibrate"):
            context(tiny).calibration(dataclasses.replace(needs, **change))  # type: ignore[arg-type]
    del tiny.loaded.calibration_runs  # type: ignore[attr-defined]
    path.write_bytes(path.read_bytes()[:-8])
    again = context(tiny).calibration(dataclasses.replace(needs, hessian=True))
    assert torch.equal(again[names[1]].rows, made[names[1]].rows)
    tiny.calibration = ("", False, {})
    stored = read_statistics(path, torch.device("cpu"))
    assert stored is not None and stored[names[0]].hessian is not None, "made whole, with what was asked for"


def test_calibration_captions_are_of_the_training_split() -> None:
    import random

    rng = random.Random(0)
    drawn = [spec.random_clip(rng, held_out=False, pair=index % 2 == 1) for index in range(200)]
    assert not any(spec.is_held_out(clip) for clip in drawn)


class Alive(TorchDispatchMode):
    """Most bytes of tensors that were made within and lived at the same time."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[weakref.ref[Tensor]] = []
        self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.made += [
            weakref.ref(t) for t in (out if isinstance(out, tuple) else (out,)) if isinstance(t, Tensor)
        ]
        living = [tensor for made in self.made if (tensor := made()) is not None]
        self.made = [weakref.ref(tensor) for tensor in living]
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in living}
        self.most = max(self.most, sum(storages.values()))
        return out


WIDTH, COUNT = 64, 12
SQUARE = 4 * WIDTH * WIDTH


def collected(budget: int | None) -> tuple[dict[str, Statistics], int]:
    """Statistics of twelve layers of equal width after some calls, and the most bytes on the device."""
    model = nn.Sequential(*(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(COUNT))).requires_grad_(False)
    with torch.no_grad():
        for number, layer in enumerate(model):
            layer.weight.copy_(torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(number)) / 8)
    needs = Needs(layers=tuple(map(str, range(COUNT))), rows=0, hessian_rows_per_call=4)
    collector = Collector(model, needs, 0, budget)
    inputs = [torch.randn(9, WIDTH, generator=torch.Generator().manual_seed(n)) for n in range(11)]
    with torch.no_grad(), collector.watching(), Alive() as alive:
        for x in inputs:
            model(x)
        found = collector.result()
    return found, alive.most


def test_hessians_rest_on_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same bits under any budget; what is on the device stays within it."""
    free, most_free = collected(None)
    assert most_free >= COUNT * SQUARE
    enough, _ = collected(COUNT * SQUARE)
    hosted: list[np.ndarray] = []

    def rest(total: Tensor) -> Any:
        hosted.append(total.numpy().copy())  # no tensor of torch's: it is not counted
        return hosted[-1]

    real = hessians._rested, hessians._brought
    for budget in (2 * SQUARE, 3 * SQUARE, 6 * SQUARE):
        with monkeypatch.context() as patch:
            patch.setattr(hessians, "_rested", rest)
            patch.setattr(hessians, "_brought", lambda total, device: torch.from_numpy(total.copy()))
            found, most = collected(budget)
        others = 9 * 4 * WIDTH * 4 + COUNT * 6 * 4 * WIDTH  # inputs, outputs, minima, sums of x
        assert most <= budget + 4 * 4 * WIDTH + others
        for name, layer in found.items():
            assert np.array_equal(layer.stored_hessian, free[name].stored_hessian.numpy())  # type: ignore[arg-type, union-attr]
            assert torch.equal(layer.mean, free[name].mean)  # type: ignore[arg-type]
    assert (hessians._rested, hessians._brought) == real
    for name, layer in enough.items():
        assert torch.equal(layer.hessian, free[name].hessian)  # type: ignore[arg-type]


def test_shared_inputs_and_several_calls_at_rest() -> None:
    """Of the model above, whose q and k read one tensor, with and without a budget."""
    torch.manual_seed(0)
    model = Attention().requires_grad_(False)
    plain = calibrate(model, runs(model), Needs(), 0, track)
    tight = calibrate(model, runs(model), Needs(), 0, track, 1)
    for name in LAYERS:
        assert torch.equal(plain[name].hessian, tight[name].hessian)  # type: ignore[arg-type]
        assert torch.equal(plain[name].rows, tight[name].rows)
        assert plain[name].shares_input_with == tight[name].shares_input_with


def test_inputs_that_change_afterwards_are_kept_as_they_were() -> None:
    """Rows wait for their turn; a model may write over them."""
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(inplace=True), nn.Linear(6, 6)).requires_grad_(False)
    needs = Needs(layers=("0", "2"), rows=0)
    found = []
    for budget in (None, 1, 2 * 4 * 36 + 50):
        collector = Collector(model, needs, 0, budget)
        x = torch.ones(3, 6)
        with collector.watching():
            for _ in range(3):
                model(x)
                x.mul_(-2)
        found.append(collector.result())
    for other in found[1:]:
        assert all(torch.equal(other[n].hessian, found[0][n].hessian) for n in ("0", "2"))  # type: ignore[arg-type]


def test_a_file_of_hessians_is_read_to_where_they_fit(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    torch.manual_seed(0)
    model = Attention().requires_grad_(False).bfloat16()
    found = calibrate(model, map(int, runs_of(model)), Needs(), 0, track)
    assert found["out"].rows.dtype == torch.bfloat16
    path = tmp_path / "found.safetensors"
    write_statistics(path, found)
    size = sum(4 * len(layer.mean) ** 2 for layer in found.values())  # type: ignore[arg-type]
    device = torch.device("meta")
    for budget, where in ((None, "meta"), (size, "meta"), (size - 1, "cpu")):
        again = read_statistics(path, device, budget)
        assert again is not None
        assert {layer.stored_hessian.device.type for layer in again.values()} == {where}  # type: ignore[union-attr]
        assert {layer.absmax.device.type for layer in again.values()} == {"meta"}
    back = read_statistics(path, torch.device("cpu"), size - 1)
    assert back is not None
    for name, layer in found.items():
        for part in ("absmax", "rows", "hessian", "mean"):
            assert torch.equal(getattr(back[name], part), getattr(layer, part))
        assert (back[name].low, back[name].shares_input_with) == (layer.low, layer.shares_input_with)
    assert torch.equal(load_file(path)["out/rows"], found["out"].rows)


def runs_of(model: Attention) -> Iterator[int]:
    for number in itertools.count():
        x = torch.randn(2, 11, 6, generator=torch.Generator().manual_seed(number)).bfloat16()
        model(x, timestep=torch.full((2,), 500))
        yield number
