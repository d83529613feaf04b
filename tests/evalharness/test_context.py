"""What a method is handed."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from evalharness.api import MethodContext
from evalharness.executor import WorkerSpec
from evalharness.session import Session
from evalharness.stages.context import StageContext


@pytest.fixture
def session(toy: Path) -> Session:
    return Session(WorkerSpec(model="toy", protocol="toy", device="cpu", skip_layers="std"))


def test_the_teacher_is_frozen_and_apart_from_what_is_changed(session: Session, tmp_path: Path) -> None:
    context: MethodContext = StageContext(session, 0, tmp_path / "train.jsonl")
    student = session.fresh_transformer()
    teacher = context.teacher()
    assert teacher is context.teacher()
    assert not teacher.training
    assert not any(p.requires_grad for p in teacher.parameters())
    assert any(p.requires_grad for p in student.parameters())
    before = [p.clone() for p in teacher.parameters()]
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.zero_()
    assert all(torch.equal(a, b) for a, b in zip(before, teacher.parameters(), strict=True))
    assert any(p.abs().sum() > 0 for p in session.fresh_transformer().parameters())


def test_batches_depend_on_the_seed_alone(session: Session, tmp_path: Path) -> None:
    def first(seed: int) -> torch.Tensor:
        batches = StageContext(session, seed, tmp_path / "log").batches(3)
        return torch.stack([batch.target for batch in itertools.islice(batches, 4)])

    assert torch.equal(first(1), first(1))
    assert not torch.equal(first(1), first(2))


def test_skip_layers_follow_the_preset(session: Session, tmp_path: Path) -> None:
    assert StageContext(session, 0, tmp_path / "log").skip_layers == ("2",)
    bare = Session(WorkerSpec(model="toy", protocol="toy", device="cpu", skip_layers="none"))
    assert StageContext(bare, 0, tmp_path / "log").skip_layers == ()


def test_skip_layers_are_those_of_the_unquantized_model(session: Session, tmp_path: Path) -> None:
    """Also when the worker has just run a cell whose linears were all replaced."""
    assert isinstance(session.pristine, torch.nn.Module)
    session.loaded.transformer = torch.nn.Sequential(torch.nn.Linear(16, 16), torch.nn.Identity())
    assert StageContext(session, 0, tmp_path / "log").skip_layers == ("2",)


def test_the_log_is_one_line_a_record(session: Session, tmp_path: Path) -> None:
    context = StageContext(session, 0, tmp_path / "train.jsonl")
    context.log({"step": 0, "loss": 0.5})
    context.log({"step": 1, "loss": 0.25})
    lines = (tmp_path / "train.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{"step": 0, "loss": 0.5}, {"step": 1, "loss": 0.25}]


def test_tracking_yields_every_step_and_tells_the_end(session: Session, tmp_path: Path) -> None:
    events: list[Mapping[str, Any]] = []
    session.emit = events.append
    context = StageContext(session, 0, tmp_path / "log")
    assert list(context.track(range(5, 500), "training")) == list(range(5, 500))
    assert events[-1] == {"what": "training", "done": 495, "total": 495}
    assert len(events) < 50, "the parent is not flooded"


def test_activating_the_reference_restores_the_full_precision_module(
    session: Session, tmp_path: Path
) -> None:
    from evalharness.api import Bits
    from evalharness.cells import Cell

    cell = Cell(model="toy", method="toy-round", bits=Bits(2, 2), seed=0)
    reference = session.activate(Cell.reference("toy", 0), None, "r").transformer
    prompts, seeds = ["a"], [1]
    full = session.loaded.generate(prompts, seeds)
    from toybench.methods import ToyRound

    method = ToyRound(w_bits=2, a_bits=2)
    method.save(
        method.apply(session.fresh_transformer(), StageContext(session, 0, tmp_path / "log")), tmp_path
    )
    rounded = session.activate(cell, tmp_path, "q").generate(prompts, seeds)
    assert (rounded != full).any()
    assert session.activate(Cell.reference("toy", 0), None, "r").transformer is reference
    assert (session.loaded.generate(prompts, seeds) == full).all()


def test_arithmetic_is_fixed_before_anything_runs_beside_a_gpu(toy: Path) -> None:
    """Needs no GPU: these are settings. The judges run on the CPU, also where the model does not."""
    settings = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [*(each.allow_tf32 for each in settings), torch.backends.cudnn.deterministic]
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        torch.backends.cudnn.allow_tf32 = True
        torch.backends.cuda.matmul.allow_tf32 = True  # as TORCH_ALLOW_TF32_CUBLAS_OVERRIDE=1 does
        spec = WorkerSpec(model="toy", protocol="toy", device="cuda", skip_layers="std")
        Session(spec).metric("toy.brightness")
        assert torch.get_num_threads() == 1
        assert [each.allow_tf32 for each in settings] == [False, False]
        assert torch.backends.cudnn.deterministic
    finally:
        torch.set_num_threads(threads)
        for each, value in zip(settings, before, strict=False):
            each.allow_tf32 = value
        torch.backends.cudnn.deterministic = before[-1]
