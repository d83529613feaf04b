"""Tables of what depends on the timestep alone: the same numbers, unknown timesteps show, all is undone."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from qvgen.integrations.timesteps import Tabled, cache_timesteps_
from qvgen.packed.convert import pack_
from tests.qvgen.packed.models import cog, finished, inputs, wan

SCHEDULE = torch.tensor([20, 500, 900])


def output(model: nn.Module, name: str, times: list[int], dtype: torch.dtype = torch.float32) -> Tensor:
    given = {**inputs(name, len(times), dtype), "timestep": torch.tensor(times)}
    with torch.no_grad():
        out: Tensor = model(**given)[0]
    return out


@pytest.mark.parametrize("clips", [{}, {"learn_clip": True, "clip_buckets": 4}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["cog", "wan"])
def test_the_same_numbers_for_every_timestep(name: str, dtype: torch.dtype, clips: dict[str, Any]) -> None:
    """Also where the linears of the table clip their input by timestep."""
    model = pack_(finished(name, **clips).to(dtype))
    cached = cache_timesteps_(copy.deepcopy(model), SCHEDULE)
    assert sum(isinstance(part, Tabled) for part in cached.modules()) == {"cog": 5, "wan": 1}[name]
    for times in ([20], [900], [500, 20], [900, 900]):
        wanted = output(model, name, times, dtype)
        # A product of two rows may round otherwise than one of a single row.
        torch.testing.assert_close(output(cached, name, times, dtype), wanted, rtol=1e-4, atol=1e-5)
        if len(times) == 1:
            assert torch.equal(output(cached, name, times, dtype), wanted)


@pytest.mark.parametrize("name", ["cog", "wan"])
def test_no_linear_of_the_timestep_runs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = cache_timesteps_(pack_(finished(name)), SCHEDULE)
    for part in model.modules():
        if isinstance(part, Tabled):
            monkeypatch.setattr(part.inner, "forward", None)
    assert output(model, name, [500]).isfinite().all()


@pytest.mark.parametrize("name", ["cog", "wan"])
def test_unknown_timesteps_show_in_their_sample_alone(name: str) -> None:
    model = cache_timesteps_(pack_(finished(name)), SCHEDULE)
    found = output(model, name, [500, 501])
    assert found[0].isfinite().all() and found[1].isnan().any()
    assert output(model, name, [500, 500]).isfinite().all()


@pytest.mark.parametrize("build", [cog, wan])
def test_models_of_full_precision_too(build: Any) -> None:
    name, model = build.__name__, build()
    wanted = output(model, name, [900])
    assert torch.equal(output(cache_timesteps_(model, SCHEDULE), name, [900]), wanted)


def test_undone_and_renewed() -> None:
    model = pack_(finished("cog"))
    before, keys = output(model, "cog", [500]), list(model.state_dict())
    cache_timesteps_(model, SCHEDULE)
    cache_timesteps_(model, torch.tensor([7]))
    assert output(model, "cog", [500]).isnan().any() and output(model, "cog", [7]).isfinite().all()
    cache_timesteps_(model, None)
    assert torch.equal(output(model, "cog", [500]), before) and list(model.state_dict()) == keys
    assert not any(isinstance(part, Tabled) for part in model.modules()) and not model._forward_pre_hooks


def test_copies_stand_alone() -> None:
    model = cache_timesteps_(pack_(finished("cog")), SCHEDULE)
    wanted = output(model, "cog", [500])
    twin = copy.deepcopy(model)
    assert output(model, "cog", [20]).isfinite().all()
    assert torch.equal(output(twin, "cog", [500]), wanted)
    cache_timesteps_(twin, None)
    assert not twin._forward_pre_hooks and torch.equal(output(model, "cog", [500]), wanted)
    assert torch.equal(output(twin, "cog", [500]), wanted)


def test_one_graph_for_all_timesteps() -> None:
    model = cache_timesteps_(pack_(finished("cog", layers=1)), SCHEDULE)
    torch.compiler.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    for times in ([20], [900]):
        torch.testing.assert_close(output(compiled, "cog", times), output(model, "cog", times))


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match="distinct"):
        cache_timesteps_(wan(), torch.tensor([1, 1]))
    with pytest.raises(ValueError, match="distinct"):
        cache_timesteps_(wan(), torch.tensor([]))
    with pytest.raises(ValueError, match="Linear: tables of timesteps are known for"):
        cache_timesteps_(nn.Linear(2, 2), SCHEDULE)
    model = cache_timesteps_(cog(), SCHEDULE)
    given = inputs("cog", 1)
    with pytest.raises(ValueError, match="by its name"), torch.no_grad():
        model(given["hidden_states"], given["encoder_hidden_states"], torch.tensor([20]))
