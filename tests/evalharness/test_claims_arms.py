"""The driver of a grid: what it shares, what it writes, and that it goes on where it stopped."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import logging
import math
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

from evalharness.cells import build_method
from evalharness.errors import UserError
from evalharness.models.tinyworld import PIPELINE
from evalharness.registry import Registry
from evalharness.tinyworld.claims import arms as driver
from evalharness.tinyworld.claims.grid import Grid, read_grid
from evalharness.tinyworld.claims.shared import ArmContext, Shared
from evalharness.tinyworld.components import build_transformer
from qvgen.auxiliary import Phi, refactor_all_
from qvgen.diverged import DivergedError
from qvgen.method import KDQAT
from qvgen.training.log import TrainLog
from qvgen.training.recipe import TrainRecipe
from qvgen.training.step import Losses

GRID = {
    "compare": ["qvgen", "kd-qat"],
    "training_clips": 4,
    "validation": {"clips": 3, "batch": 2},
    "recipe": {"steps": 2, "batch_size": 2, "log_every": 1, "validate_every": 1},
    "arms": {
        "kd-qat": {"method": "kd-qat"},
        "qvgen": {"method": "qvgen", "options": {"rank": 2, "phi_end": "drop"}},
    },
    "blocks": {"core": {"bits": [4], "seeds": [3]}},
}


def read(folder: Path, **changes: Any) -> Grid:
    path = folder / "grid.yaml"
    path.write_text(yaml.safe_dump({**GRID, **changes}))
    return read_grid(path)


class Stub:
    """Stands for ``Shared``: methods that train nothing, a model that is a number."""

    def __init__(self, grid: Grid) -> None:
        self.grid = grid
        self.trained: list[str] = []
        self.fingerprint = "f" * 64
        self.teacher = self.held_out = None
        self.session = SimpleNamespace(
            registry=Registry(),
            spec=SimpleNamespace(device="cpu"),
            fresh_transformer=lambda: 1.5,
        )

    def losses(self, module: float) -> dict[str, float]:
        return {"distill": module, "task": 2 * module}


@pytest.fixture
def stub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stub:
    """A grid of two arms, of which ``qvgen`` diverges."""
    shared = Stub(read(tmp_path))

    def apply(self: KDQAT, module: Any, ctx: Any) -> Any:
        shared.trained.append(self.name)
        if self.name == "qvgen":
            raise DivergedError("training diverged: loss nan")
        return module

    monkeypatch.setattr(KDQAT, "apply", apply)
    monkeypatch.setattr(
        driver, "ArmContext", lambda *_: SimpleNamespace(batches=lambda batch_size: iter([None]))
    )
    return shared


def train(stub: Stub, out: Path, **options: Any) -> int:
    return driver.train_arms(stub.grid, stub, out, **options)  # type: ignore[arg-type]


def record(out: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "arms" / name / "record.json").read_text())
    return found


def test_a_diverged_arm_is_recorded_and_the_next_one_trained(stub: Stub, tmp_path: Path) -> None:
    assert train(stub, tmp_path) == 0
    assert stub.trained == ["kd-qat", "qvgen"]
    fine, diverged = record(tmp_path, "kd-qat-w4a4-s3"), record(tmp_path, "qvgen-w4a4-s3")
    assert fine["final"] == {"distill": 1.5, "task": 3.0} and fine["error"] is None
    assert diverged["final"] is None and diverged["error"] == "DivergedError: training diverged: loss nan"
    assert (fine["arm"], fine["w_bits"], fine["seed"]) == ("kd-qat", 4, 3)


@pytest.mark.parametrize("lanes", [1, 2])
def test_a_mistake_within_an_arm_ends_the_process_and_is_no_result(
    stub: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lanes: int
) -> None:
    def apply(self: KDQAT, module: Any, ctx: Any) -> Any:
        raise ValueError("no layer is called blocks.7; give one that the model has")

    monkeypatch.setattr(KDQAT, "apply", apply)
    with pytest.raises(UserError, match=r"^(kd-qat|qvgen)-w4a4-s3: ValueError: no layer is called blocks\.7"):
        train(stub, tmp_path, lanes=lanes)
    assert not list(tmp_path.glob("arms/*/record.json"))


def test_what_qvgen_raises_of_a_diverged_training_is_told_by_its_class() -> None:
    phi = Phi(torch.full((3, 2), math.nan), torch.ones(2, 3))
    with pytest.raises(FloatingPointError, match="training diverged: Phi"):
        refactor_all_([phi], 1)
    train_log = TrainLog(None, TrainRecipe(steps=1), torch.nn.Linear(1, 1))  # type: ignore[arg-type]
    with pytest.raises(FloatingPointError, match="training diverged: loss nan"):
        train_log.add(0, Losses(torch.tensor(math.nan), torch.tensor(1.0)), None, None)  # type: ignore[arg-type]


def test_a_model_without_a_finite_loss_has_diverged(stub: Stub, tmp_path: Path) -> None:
    stub.losses = lambda module: {"distill": math.nan, "task": 1.0}  # type: ignore[method-assign]
    assert train(stub, tmp_path) == 0
    found = record(tmp_path, "kd-qat-w4a4-s3")
    assert found["final"] is None and found["error"] == "training diverged: held-out distill nan"


def test_finished_arms_are_left_alone(stub: Stub, tmp_path: Path) -> None:
    train(stub, tmp_path)
    path = tmp_path / "arms" / "kd-qat-w4a4-s3" / "record.json"
    before = path.read_bytes()
    (tmp_path / "arms" / "qvgen-w4a4-s3" / "record.json").unlink()
    stub.trained.clear()
    assert train(stub, tmp_path) == 0
    assert stub.trained == ["qvgen"] and path.read_bytes() == before


def test_an_arm_that_another_process_holds_is_passed_over(stub: Stub, tmp_path: Path) -> None:
    folder = tmp_path / "arms" / "kd-qat-w4a4-s3"
    folder.mkdir(parents=True)
    handle = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(handle, fcntl.LOCK_EX)
    assert train(stub, tmp_path) == 1
    assert stub.trained == ["qvgen"]
    os.close(handle)  # as the end of that process does
    assert train(stub, tmp_path) == 0
    assert stub.trained == ["qvgen", "kd-qat"]


def test_no_arm_begins_after_the_given_minutes(stub: Stub, tmp_path: Path) -> None:
    assert train(stub, tmp_path, minutes=0.0) == 2
    assert stub.trained == []


def test_a_record_of_other_options_is_refused(stub: Stub, tmp_path: Path) -> None:
    train(stub, tmp_path)
    stub.grid = read(tmp_path, training_clips=5)
    with pytest.raises(UserError, match="kd-qat-w4a4-s3: its record is of other options, data or weights"):
        train(stub, tmp_path)


def test_arms_of_another_precision_or_device_are_not_gone_on_with(stub: Stub, tmp_path: Path) -> None:
    train(stub, tmp_path, lanes=2)
    found = record(tmp_path, "kd-qat-w4a4-s3")
    assert (found["float32_products"], found["device"], found["lanes"]) == ("highest", "cpu", 2)
    train(stub, tmp_path, lanes=1)  # how many at a time is no part of what was asked
    torch.set_float32_matmul_precision("high")
    try:
        with pytest.raises(UserError, match=r"another device or precision \(--device, --tf32\)"):
            train(stub, tmp_path)
    finally:
        torch.set_float32_matmul_precision("highest")
    stub.session.spec.device = "cuda"
    with pytest.raises(UserError, match="another device or precision"):
        train(stub, tmp_path)


def test_the_list_names_arms_and_cost_and_trains_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    read(tmp_path, blocks={"core": {"bits": [4, 3], "seeds": [0, 1, 2]}})
    caplog.set_level(logging.INFO)
    out = tmp_path / "out"
    arguments = ["--grid", str(tmp_path / "grid.yaml"), "--out", str(out), "--list", "--step-ms", "1000"]
    assert driver.main(arguments) == 0
    # 2 arms x 2 widths x 3 seeds, 2 steps of a second and 2 seconds each: 48 seconds
    assert caplog.messages[0] == "12 arms, 24 steps, about 0.8 minutes of one device"
    assert caplog.messages[1] == "core  kd-qat-w4a4-s0" and not out.exists()
    with pytest.raises(UserError, match="unknown arm in --save 'qvgen-w9a9'"):
        driver.main([*arguments[:4], "--save", "qvgen-w9a9"])
    with pytest.raises(UserError, match="unknown block 'cor'; did you mean 'core'"):
        driver.main([*arguments[:4], "--blocks", "cor"])


@pytest.mark.parametrize(("flag", "value", "message"), [
    ("--seeds", "a", "--seeds 'a': expected whole numbers from 0"),
    ("--lanes", "0", "--lanes 0: expected a whole number from 1"),
    ("--lanes", "-1", "--lanes -1: expected a whole number from 1"),
])  # fmt: skip
def test_mistakes_on_the_command_line_are_named(tmp_path: Path, flag: str, value: str, message: str) -> None:
    read(tmp_path)
    out = tmp_path / "out"
    with pytest.raises(UserError, match=message):
        driver.main(["--grid", str(tmp_path / "grid.yaml"), "--out", str(out), flag, value])
    assert not out.exists()


@pytest.mark.parametrize("diverges", ["qvgen", "none of them"])
def test_arms_with_an_error_are_counted_named_and_an_exit_code(
    stub: Stub,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    diverges: str,
) -> None:
    def apply(self: KDQAT, module: Any, ctx: Any) -> Any:
        if self.name == diverges:
            raise DivergedError("training diverged: loss nan")
        return module

    monkeypatch.setattr(KDQAT, "apply", apply)
    monkeypatch.setattr(driver, "Shared", lambda *_: stub)
    caplog.set_level(logging.INFO)
    out = tmp_path / "out"
    code = driver.main(["--grid", str(tmp_path / "grid.yaml"), "--out", str(out)])
    if diverges == "qvgen":
        assert code == 1
        assert caplog.messages[-3:] == [
            "2 of 2 arms finished, 1 of them with an error",
            "qvgen-w4a4-s3: DivergedError: training diverged: loss nan",
            f"to train an arm again, delete its folder in {out / 'arms'}",
        ]
    else:
        assert code == 0
        assert caplog.messages[-1] == "2 of 2 arms finished, 0 of them with an error"


def test_a_recipe_for_another_device_is_found_before_any_arm(tmp_path: Path) -> None:
    read(tmp_path, recipe={"steps": 2, "batch_size": 2, "compile": "graph"})
    out = tmp_path / "out"
    arguments = ["--grid", str(tmp_path / "grid.yaml"), "--out", str(out)]
    with pytest.raises(
        UserError, match=r"kd-qat-w4a4-s3: compile: graph .* --device is cpu; take --device cuda"
    ):
        driver.main(arguments)
    assert not out.exists()
    assert driver.main([*arguments, "--list"]) == 0, "the list costs nothing and is for any device"


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")
def test_a_device_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    read(tmp_path)
    with pytest.raises(UserError, match="--device cuda: torch sees no CUDA device here"):
        driver.main(["--grid", str(tmp_path / "grid.yaml"), "--out", str(tmp_path / "o"), "--device", "cuda"])


def test_a_pipeline_that_is_none_or_whose_weights_could_not_be_scored_is_refused(tmp_path: Path) -> None:
    read(tmp_path)
    arguments = ["--grid", str(tmp_path / "grid.yaml"), "--out", str(tmp_path / "o"), "--pipeline"]
    with pytest.raises(UserError, match=r"no model_index\.json there"):
        driver.main([*arguments, str(tmp_path)])
    (tmp_path / "model_index.json").write_text("{}")
    with pytest.raises(UserError, match="--save is for the shipped model"):
        driver.main([*arguments, str(tmp_path), "--save", "qvgen"])
    assert not (tmp_path / "o").exists()


@pytest.mark.slow
def test_arms_of_another_width_learn_from_that_model(tmp_path: Path) -> None:
    """The shipped pipeline around a transformer of 2 heads instead of 6."""
    shutil.copytree(PIPELINE, tmp_path / "narrow")
    shutil.rmtree(tmp_path / "narrow" / "transformer")
    torch.manual_seed(0)
    build_transformer(heads=2).save_pretrained(tmp_path / "narrow" / "transformer")
    grid = read(tmp_path, blocks={"core": {"arms": ["kd-qat"], "bits": [4], "seeds": [3]}})
    narrow, shipped = Shared(grid, "cpu", tmp_path / "narrow"), Shared(grid, "cpu")
    assert driver.train_arms(grid, narrow, tmp_path / "out") == 0
    found = record(tmp_path / "out", "kd-qat-w4a4-s3")
    assert narrow.teacher.config.num_attention_heads * 40 == 80
    assert found["model_fingerprint"] == narrow.fingerprint != shipped.fingerprint
    with pytest.raises(ValueError, match="other options"):
        driver.train_arms(grid, shipped, tmp_path / "out")


@pytest.mark.slow
def test_real_arms_share_their_data_and_save_what_they_measured(tmp_path: Path) -> None:
    grid = read(tmp_path, blocks={"core": {"arms": ["qvgen"], "bits": [4], "seeds": [3]}})
    shared = Shared(grid, "cpu")
    assert driver.train_arms(grid, shared, tmp_path, save=["qvgen-w4a4"]) == 0
    found = record(tmp_path, "qvgen-w4a4-s3")
    lines = [json.loads(x) for x in (tmp_path / "arms/qvgen-w4a4-s3/train.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
    assert lines[-1]["val_loss_end"] != lines[-1]["val_loss"], "Phi was dropped after the last step"
    assert found["final"]["distill"] == pytest.approx(lines[-1]["val_loss_end"], rel=0.02), "bf16 on disk"

    arm = grid.arms[0]
    method = build_method(shared.session.registry, arm.cell)
    loaded = method.load(shared.session.fresh_transformer(), tmp_path / "checkpoints/s3/qvgen-w4a4")
    assert shared.losses(loaded.eval()) == pytest.approx(found["final"], rel=1e-5)

    other = dataclasses.replace(arm, cell=dataclasses.replace(arm.cell, seed=4), skip_layers="none")
    contexts = [ArmContext(shared, a, tmp_path / "log") for a in (arm, arm, other)]
    first, again, foreign = (next(context.batches(2)).target for context in contexts)
    assert torch.equal(first, again) and not torch.equal(first, foreign)
    held = [next(context.validation_batches(64)) for context in contexts]
    assert held[0] is held[2] and len(held[0].target) == 2
    assert contexts[2].skip_layers == () and contexts[0].skip_layers
    assert contexts[0].teacher() is contexts[2].teacher()
    assert set(shared.loaded._kept) == {3, 4, 1 << 20}, "each seed's clips are encoded once"  # type: ignore[attr-defined]
    assert [len(clips[0]) for clips in shared.loaded._kept.values()] == [3, 4, 4]  # type: ignore[attr-defined]
