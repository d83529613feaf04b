"""ViDiT-Q: what balancing and rotation leave alone, what they change, what author mode does."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from baselines.balancing import balance, balanced_error, channel_mask, rounded_twice
from baselines.layerwise import spread_out
from baselines.mixed_precision import promoted_layers
from baselines.viditq import ALPHAS, AUTHOR_ALPHA, BalanceOptions, ViDiTQ
from qvgen.api import frozen_layers
from qvgen.config import QuantConfig
from tests.baselines.ptq import Context, distance, inputs, make_block, sample
from tests.finished import finished_layers

CONFIG = QuantConfig(w_bits=4, a_bits=4, zero_point="fixed", range_init="minmax")


def options(alpha: float = 0.5, **changes: Any) -> BalanceOptions:
    return BalanceOptions(**{"alpha": alpha, "rotate": True, "over_time": "max", **changes})


def statistics(x: Tensor) -> Any:
    rows = x.reshape(-1, x.shape[-1])
    half = len(rows) // 2
    absmax = torch.stack([rows[:half].abs().amax(0), rows[half:].abs().amax(0)])
    return SimpleNamespace(absmax=absmax, rows=rows, hessian=rows.T @ rows / len(rows))


def apply(**changes: Any) -> tuple[nn.Module, Context]:
    model = make_block()
    context = Context(copy.deepcopy(model), sample)
    given = {"w_bits": 4, "a_bits": 4, "prompts": 2, **changes}
    return ViDiTQ(**given).apply(model, context), context


@pytest.mark.parametrize("width", [24, 240, 960, 50])  # 50: no transform is known, scaled only
@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.99])
def test_before_rounding_the_output_is_unchanged(width: int, alpha: float) -> None:
    g = torch.Generator().manual_seed(width)
    weight = torch.randn(32, width, generator=g)
    x = torch.randn(200, width, generator=g) * torch.logspace(-1.5, 1.5, width)
    balanced = balance(weight, statistics(x), options(alpha))
    assert (balanced.rotation is None) == (width == 50)
    wanted = x.double() @ weight.double().T
    found = balanced.rows(x).double() @ balanced.weight.double().T
    assert float((found - wanted).abs().max()) <= 1e-5 * float(wanted.abs().max())


def test_the_mask_is_the_papers() -> None:
    weight = torch.tensor([[1.0, -4.0, 0.0], [-2.0, 1.0, 0.0]])
    found = SimpleNamespace(absmax=torch.tensor([[8.0, 0.0, 3.0], [2.0, 0.0, 5.0]]))
    mask = channel_mask(weight, found, options(0.25))  # type: ignore[arg-type]
    np.testing.assert_allclose(mask, [2**0.25 / 8**0.75, 1.0, 1.0], rtol=1e-6)
    mean = channel_mask(weight, found, options(0.25, over_time="mean"))  # type: ignore[arg-type]
    np.testing.assert_allclose(mean, [2**0.25 / 5**0.75, 1.0, 1.0], rtol=1e-6)


def test_the_mean_leaves_out_ranges_that_were_never_visited() -> None:
    weight = torch.ones(1, 2)
    found = SimpleNamespace(absmax=torch.tensor([[4.0, 9.0], [0.0, 0.0], [0.0, 1.0]]))
    mask = channel_mask(weight, found, options(0.0, over_time="mean"))  # type: ignore[arg-type]
    np.testing.assert_allclose(mask, [1 / 4, 1 / 5], rtol=1e-6)


def test_gptq_sees_the_balanced_and_rotated_inputs() -> None:
    x = inputs(0)[0]
    balanced = balance(torch.randn(5, 24), statistics(x), options())
    seen = balanced.rows(x)
    torch.testing.assert_close(balanced.hessian(statistics(x)), seen.T @ seen / len(x), rtol=1e-4, atol=1e-4)


def test_balancing_and_rotation_each_help_where_channels_differ() -> None:
    linear, found = make_block().up, statistics(inputs(0))
    neither = balanced_error(linear, _flat(found), options(1.0, rotate=False), CONFIG)
    scaled = balanced_error(linear, found, options(0.5, rotate=False), CONFIG)
    both = balanced_error(linear, found, options(0.5), CONFIG)
    assert both < scaled < neither


def _flat(found: Any) -> Any:
    """Statistics that make the mask 1 with alpha 1 ... but for the weight's own maxima: divide them out."""
    return SimpleNamespace(absmax=torch.zeros_like(found.absmax), rows=found.rows, hessian=found.hessian)


def test_the_swept_alpha_is_the_best_of_the_nine() -> None:
    _, context = apply()
    swept = {r["alpha"]: r["error"] for r in context.records if "alpha" in r}
    assert tuple(swept) == ALPHAS and context.needs[0].buckets == 10
    block = make_block()
    found = Context(block, sample).calibration(context.needs[0])
    of_all = {
        alpha: np.mean(
            [balanced_error(block.get_submodule(n), found[n], options(alpha), CONFIG) for n in found]
        )
        for alpha in ALPHAS
    }
    np.testing.assert_allclose(list(swept.values()), list(of_all.values()), rtol=1e-4)
    best = min(of_all, key=lambda alpha: of_all[alpha])
    chosen = dict(finished_layers(apply()[0]))["up"].input_scale
    mask = channel_mask(block.up.weight, found["up"], options(best))
    assert chosen is not None
    torch.testing.assert_close(chosen.abs(), mask)


COGVIDEOX = ("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0", "ff.net.0.proj", "ff.net.2")
WAN = (*COGVIDEOX[:4], *(f"attn2.{name}" for name in ("to_q", "to_k", "to_v", "to_out.0")), "up", "down")


@pytest.mark.parametrize(
    ("kinds", "blocks"), [(COGVIDEOX, 5), (COGVIDEOX, 30), (COGVIDEOX, 42), (WAN, 30), (WAN, 40)]
)
def test_alpha_is_judged_on_all_kinds_of_layers_and_all_depths(kinds: tuple[str, ...], blocks: int) -> None:
    names = [f"blocks.{block}.{kind}" for block in range(blocks) for kind in kinds]
    judged = spread_out(names, 24)
    assert len(judged) == len(set(judged)) == 24 and judged == [n for n in names if n in judged]
    share = 24 / len(kinds)
    counts = np.array([sum(n.endswith("." + kind) for n in judged) for kind in kinds])
    assert counts.min() >= share / 2 and counts.max() <= 1.5 * share
    assert len({n.split(".")[1] for n in judged}) >= min(blocks, 20)


def test_fewer_layers_than_wanted_are_all_judged() -> None:
    assert [spread_out("abc", count) for count in (3, 24)] == [["a", "b", "c"]] * 2
    assert len(spread_out("abc", 1)) == 1


def test_it_beats_rounding_and_gptq_adds_to_it() -> None:
    from baselines.rtn import RTN

    reference = make_block()
    nearest = distance(RTN(w_bits=4, a_bits=4).apply(make_block(), Context(reference, sample)), reference)
    plain = distance(apply()[0], reference)
    solved = distance(apply(w_bits=3, a_bits=8, solver="gptq")[0], reference)
    rounded = distance(apply(w_bits=3, a_bits=8)[0], reference)
    assert plain < 0.6 * nearest and solved < rounded


def test_the_public_codes_double_rounding_is_an_option_and_costs() -> None:
    linear, found = make_block().up, statistics(inputs(0))
    balanced = balance(linear.weight, found, options())
    twice = rounded_twice(linear.weight, balanced, CONFIG).weight()
    divided = linear.weight.detach().numpy() / balanced.input_scale.abs().numpy()
    weight = linear.weight.detach().numpy()
    low = np.minimum(np.minimum(weight.min(1), divided.min(1)), 0)[:, None]
    high = np.maximum(np.maximum(weight.max(1), divided.max(1)), 0)[:, None]
    once = _round(divided, low, high)
    assert balanced.rotation is not None
    turned = balanced.rotation(torch.from_numpy(once * np.sign(balanced.input_scale.numpy()))).numpy()
    low, high = np.minimum(low, turned.min(1)[:, None]), np.maximum(high, turned.max(1)[:, None])
    np.testing.assert_allclose(twice.numpy(), _round(turned, low, high), atol=1e-4)
    reference = make_block()
    assert distance(apply(double_quant=True)[0], reference) > 1.5 * distance(apply()[0], reference)
    with pytest.raises(ValueError, match="double_quant"):
        ViDiTQ(w_bits=4, a_bits=4, double_quant=True, solver="gptq")


def _round(weight: Any, low: Any, high: Any) -> Any:
    step = ((high - low) / np.float32(15)).astype(np.float32)
    zero = np.rint(-low / step)
    return (np.clip(np.rint(weight / step + zero), 0, 15) - zero) * step


def test_author_mode_mixes_precisions_and_says_so() -> None:
    model, context = apply(mode="author", promoted=0.5)
    configs = {name.removesuffix(".inner"): layer.config for name, layer in frozen_layers(model)}
    eight = {name for name, config in configs.items() if config.w_bits == 8}
    assert len(eight) == 3 and eight == {r["layer"] for r in context.records if r.get("bits") == 8}
    assert all(config.a_symmetric and config.range_init == "minmax" for config in configs.values())
    assert all(config.a_bits == config.w_bits for config in configs.values())
    errors = {r["layer"]: r["error"] for r in context.records if "layer" in r}
    found = Context(make_block(), sample).calibration(context.needs[0])
    config = dataclasses.replace(CONFIG, a_symmetric=True)
    every = {
        n: balanced_error(make_block().get_submodule(n), found[n], options(AUTHOR_ALPHA), config)
        for n in found
    }
    assert min(errors.values()) >= max(every[n] for n in set(every) - eight) - 1e-6
    plain, _ = apply(mode="author", promoted=0.0)
    assert {layer.config.w_bits for _, layer in frozen_layers(plain)} == {4}


def test_the_budget_is_divided_between_metrics_by_error() -> None:
    quality = {f"blocks.{i}.attn1.to_q": 0.1 * (i + 1) for i in range(4)}  # in all 1.0
    text = {f"blocks.{i}.attn2.to_q": 0.75 + 0.1 * i for i in range(4)}  # in all 3.6, each larger
    chosen = promoted_layers({**quality, **text}, 0.5)  # 4 of 8: 1 and 3
    assert chosen == (
        "blocks.1.attn2.to_q",
        "blocks.2.attn2.to_q",
        "blocks.3.attn1.to_q",
        "blocks.3.attn2.to_q",
    )
    assert promoted_layers(quality, 0.0) == () and len(promoted_layers(quality, 1.0)) == 4
    assert promoted_layers(dict.fromkeys(quality, 0.0), 0.5) == tuple(sorted(quality)[:2])


@pytest.mark.parametrize("mode", ["fair", "author"])
def test_saved_and_loaded_are_the_same(mode: str, tmp_path: Path) -> None:
    live, _ = apply(mode=mode)
    method = ViDiTQ(w_bits=4, a_bits=4, mode=mode)  # type: ignore[arg-type]
    method.save(live, tmp_path)
    x = inputs(7)
    assert torch.equal(live(x), method.load(make_block(), tmp_path)(x))
    other = ViDiTQ(w_bits=4, a_bits=4, mode="fair" if mode == "author" else "author")
    with pytest.raises(ValueError, match=f"mode '{mode}', wanted '{other.mode}'"):
        other.load(make_block(), tmp_path)
    with pytest.raises(ValueError, match="w_bits 4, wanted 3"):
        ViDiTQ(w_bits=3, a_bits=4, mode=mode).load(make_block(), tmp_path)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "wrong", [{"mode": "x"}, {"alpha": 1.5}, {"over_time": "sum"}, {"promoted": 2.0}, {"sweep_layers": 0}]
)
def test_wrong_options_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        ViDiTQ(w_bits=4, a_bits=4, **wrong)
