"""SVDQuant against SciPy's SVD and the identities that the paper states."""

from __future__ import annotations

import copy
import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch

from baselines import low_rank
from baselines.low_rank import (
    Problem,
    refine_branch,
    search_smoothing,
    smoothed,
    smoothing_candidates,
    top_svd,
)
from baselines.svdquant import GELU_SHIFT, SVDQuant
from qvgen.config import QuantConfig
from qvgen.transformed import TransformedQuantLinear
from tests.baselines.ptq import Context, distance, inputs, make_block, sample
from tests.finished import finished_layers

FAIR = QuantConfig(w_bits=4, a_bits=4, zero_point="fixed", range_init="minmax")


def problem(out: int = 30, config: QuantConfig = FAIR) -> Problem:
    g = torch.Generator().manual_seed(out)
    x = inputs(3)[0]
    return Problem(torch.randn(out, 24, generator=g), x, x.abs().amax(0), config)


def apply(**options: Any) -> tuple[Any, Context]:
    model = make_block()
    context = Context(copy.deepcopy(model), sample)
    return SVDQuant(w_bits=4, a_bits=4, prompts=2, **options).apply(model, context), context


@pytest.mark.parametrize("shape", [(30, 24), (20, 90), (24, 24), (5, 40)])
def test_the_branch_is_the_best_of_its_rank(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    u, s, v = scipy.linalg.svd(matrix.numpy(), full_matrices=False)
    found = top_svd(matrix, 6)
    np.testing.assert_allclose(found.weight(), (u[:, :6] * s[:6]) @ v[:6], atol=2e-5)
    np.testing.assert_allclose(found.up.norm(dim=0), s[: len(found.down)], rtol=1e-5)
    gram = found.down @ found.down.T
    np.testing.assert_allclose(gram, np.eye(len(found.down)), atol=1e-5)


def test_the_search_for_large_matrices_is_nearly_as_good(monkeypatch: pytest.MonkeyPatch) -> None:
    g = torch.Generator().manual_seed(0)
    matrix = torch.randn(300, 200, generator=g) * torch.logspace(0, -1, 200)
    exact = (matrix - top_svd(matrix, 32).weight()).norm()
    monkeypatch.setattr(low_rank, "_EXACT_UP_TO", 0)
    quick = top_svd(matrix, 32)
    assert (matrix - quick.weight()).norm() < 1.01 * exact
    assert torch.equal(quick.up, top_svd(matrix, 32).up), "no chance in it"


def test_candidates_are_the_authors() -> None:
    x, w = torch.tensor([4.0, 0.0, 9.0]), torch.tensor([2.0, 1.0, 0.0])
    found = torch.stack(list(smoothing_candidates(x, w, 20)))
    assert found.shape == (39, 3)
    wanted = [[1.0, 1.0, 1.0]]
    for step in range(1, 20):
        a = step * 0.05
        wanted += [[4**a, 1.0, 9**a], [4**a / 2 ** (1 - a), 1.0, 1.0]]
    np.testing.assert_allclose(found, np.array(wanted), rtol=1e-5)


def test_smoothing_changes_nothing_before_rounding() -> None:
    given = problem()
    factor = torch.rand(24) + 0.1
    after = smoothed(given, factor)
    torch.testing.assert_close(after.wanted(), given.wanted(), rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(after.absmax, after.x.abs().amax(0))


def test_smoothing_that_is_chosen_helps() -> None:
    given = problem()
    wanted = given.wanted()

    def error(factor: torch.Tensor) -> float:
        smooth = smoothed(given, factor)
        branch = top_svd(smooth.weight, 4)
        rounded = low_rank.round_weight(smooth.weight - branch.weight(), FAIR).weight()
        return low_rank.branch_error(smooth, branch, rounded, wanted)

    chosen = error(search_smoothing(given, 4, 20))
    candidates = list(smoothing_candidates(given.absmax, given.weight.abs().amax(0), 20))
    assert chosen == min(error(factor) for factor in candidates)
    assert chosen < 0.5 * error(torch.ones(24)), "two channels are outliers"


@pytest.mark.parametrize("bits", [2, 4])
def test_the_error_falls_to_the_stop(bits: int) -> None:
    given = problem(config=replace(FAIR, w_bits=bits))
    branch, errors = refine_branch(given, 4, 100)
    assert 1 < len(errors) < 100
    assert all(later < earlier for earlier, later in itertools.pairwise(errors))
    assert branch.up.shape == (30, 4) and branch.down.shape == (4, 24)
    assert refine_branch(given, 4, 1)[1] == errors[:1]
    once = refine_branch(given, 4, 1)[0]
    torch.testing.assert_close(once.weight(), top_svd(given.weight, 4).weight())


@pytest.mark.parametrize("mode", ["fair", "author"])
def test_residual_and_branch_make_up_the_weight(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is rounded is exactly what the stored branch leaves, in the smoothed basis."""
    from baselines import layerwise

    seen: list[torch.Tensor] = []
    honest = layerwise.round_weight

    def spy(weight: torch.Tensor, *rest: Any) -> layerwise.Rounded:
        seen.append(weight)
        return honest(weight, *rest)

    monkeypatch.setattr(layerwise, "round_weight", spy)
    model, _ = apply(rank=4, mode=mode)
    original = make_block()
    layers = dict(finished_layers(model))
    assert len(seen) == len(layers) == 6
    for residual, (name, layer) in zip(seen, layers.items(), strict=True):
        assert isinstance(layer, TransformedQuantLinear)
        assert layer.up is not None and layer.down is not None and layer.input_scale is not None
        assert torch.equal(layer.down, layer.down.bfloat16().float()), "stored in 16 bit"
        weight = (residual + layer.up @ layer.down) * layer.input_scale
        wanted = original.get_submodule(name).weight
        assert isinstance(wanted, torch.Tensor)
        torch.testing.assert_close(weight, wanted.detach(), rtol=1e-5, atol=1e-5)


def test_linears_of_one_input_share_smoothing_and_down_projection() -> None:
    model, context = apply(rank=4)
    layers = dict(finished_layers(model))
    q, k, out = layers["to_q"], layers["to_k"], layers["to_out"]
    assert torch.equal(q.input_scale, k.input_scale) and torch.equal(q.down, k.down)
    assert not torch.equal(q.up, k.up) and not torch.equal(q.down, out.down)
    assert [record["linears"] for record in context.records] == [3, 1, 1, 1]


def test_author_mode_shifts_what_comes_from_gelu() -> None:
    model, _ = apply(rank=4, mode="author")
    layers = dict(finished_layers(model))
    shifts = {name: layer.transform.shift for name, layer in layers.items()}
    assert shifts == {name: GELU_SHIFT if name == "down" else 0.0 for name in shifts}
    down = layers["down"]
    config = down.inner.config
    assert not config.a_symmetric and layers["up"].inner.config.a_symmetric and config.w_symmetric
    assert config.a_granularity == config.w_granularity == "group"
    assert (config.w_group_size, layers["up"].inner.config.w_group_size) == (48, 24)
    # With its own rounding undone the layer is the linear it was: the bias takes the shift back.
    linear = make_block().down
    x = torch.nn.functional.gelu(torch.randn(5, 48))
    weight = down.inner.weight + down.up @ down.down
    found = down.transformed(x) @ weight.T + down.inner.bias
    exact = down.transformed(x) @ (linear.weight / down.input_scale).T
    wanted = linear(x)
    assert (exact + down.inner.bias - wanted).abs().max() < 2e-5
    assert (found - wanted).square().sum() < 0.02 * wanted.square().sum()


@pytest.mark.parametrize("width", [1, 97])
def test_a_row_that_no_group_divides_is_one_group(width: int, tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(width, 12), torch.nn.Tanh(), torch.nn.Linear(12, 4))
    method = SVDQuant(w_bits=8, a_bits=8, prompts=1, rank=4, mode="author")
    context = Context(copy.deepcopy(model), lambda module, number: module(torch.randn(40, width)))
    x, fresh = torch.randn(20, width), copy.deepcopy(model)
    with torch.no_grad():
        wanted = model(x)
        done = method.apply(model, context)
        assert (done(x) - wanted).square().sum() < 1e-3 * wanted.square().sum()
    config = dict(finished_layers(done))["0"].inner.config  # type: ignore[union-attr]
    assert (config.w_granularity, config.a_granularity) == ("channel", "token")
    method.save(done, tmp_path)
    assert torch.equal(method.load(fresh, tmp_path)(x), done(x))


def test_gptq_sees_the_shifted_and_smoothed_inputs() -> None:
    from types import SimpleNamespace

    from baselines.svdquant import _hessian

    x, factor = torch.randn(50, 6), torch.rand(6) + 0.5
    found = SimpleNamespace(hessian=x.T @ x / 50, mean=x.mean(0))
    seen = (x + 0.3) / factor
    torch.testing.assert_close(_hessian(found, 0.3, factor), seen.T @ seen / 50)  # type: ignore[arg-type]


def test_a_shift_needs_a_bias() -> None:
    model = make_block()
    model.down = torch.nn.Linear(48, 24, bias=False)
    context = Context(copy.deepcopy(model), sample)
    done = SVDQuant(w_bits=4, a_bits=4, prompts=1, rank=4, mode="author").apply(model, context)
    assert dict(finished_layers(done))["down"].transform.shift == 0.0  # type: ignore[union-attr]


def test_author_mode_spares_what_the_authors_spare() -> None:
    import re

    from baselines.svdquant import AUTHOR_SPARES

    spared = ["patch_embed.text_proj", "time_embedding.linear_1", "transformer_blocks.3.norm1.linear"]
    spared += ["norm_out.linear", "proj_out", "condition_embedder.time_proj", "blocks.0.attn2.to_k"]
    kept = ["transformer_blocks.3.attn1.to_q", "transformer_blocks.3.ff.net.0.proj", "blocks.0.attn2.to_q"]
    kept += ["blocks.0.ffn.net.2", "transformer_blocks.3.attn1.to_out.0"]
    assert [name for name in spared + kept if re.search(AUTHOR_SPARES, name)] == spared


def test_the_branch_and_gptq_help() -> None:
    """By the output of the whole block, on other inputs than those of calibration."""
    reference = make_block()
    small = distance(apply(rank=1, iterations=1)[0], reference)
    large = distance(apply(rank=12)[0], reference)
    assert large < 0.7 * small
    eight = {"w_bits": 3, "a_bits": 8, "prompts": 2, "rank": 2}
    errors = []
    for solver in ("rtn", "gptq"):
        model = make_block()
        context = Context(copy.deepcopy(model), sample)
        errors.append(distance(SVDQuant(solver=solver, **eight).apply(model, context), reference))  # type: ignore[arg-type]
        assert context.needs[0].hessian == (solver == "gptq")
    assert errors[1] < errors[0]


@pytest.mark.parametrize("mode", ["fair", "author"])
def test_saved_and_loaded_are_the_same(mode: str, tmp_path: Path) -> None:
    method = SVDQuant(w_bits=4, a_bits=4, prompts=1, rank=4, mode=mode)  # type: ignore[arg-type]
    model = make_block()
    live = method.apply(model, Context(copy.deepcopy(model), sample))
    method.save(live, tmp_path)
    loaded = method.load(make_block(), tmp_path)
    x = inputs(7)
    assert torch.equal(live(x), loaded(x))


@pytest.mark.parametrize(
    "options",
    [{"mode": "best"}, {"rank": 0}, {"solver": "obq"}, {"grid": 0}, {"iterations": 0}, {"prompts": 0}],
)
def test_wrong_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        SVDQuant(w_bits=4, a_bits=4, **options)
