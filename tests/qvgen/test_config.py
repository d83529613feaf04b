"""Configs refuse nonsense and survive JSON."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from qvgen.config import QuantConfig, QVGenConfig, from_json, from_mapping, to_json
from qvgen.method import QVGen
from qvgen.training.recipe import TrainRecipe


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"w_bits": 1}, "w_bits is 1; expected a whole number from 2 to 8"),
        ({"a_bits": 17}, "a_bits is 17"),
        ({"w_bits": True}, "w_bits is True"),
        ({"w_bits": "3"}, "w_bits is '3'"),
        ({"range_init": "best"}, "range_init is 'best'; allowed: 'search', 'minmax'"),
        ({"clip_init": 1.0}, r"clip_init is 1.0; expected a number in \(0.0, 1.0\)"),
        ({"clip_buckets": 0}, "clip_buckets is 0"),
        ({"w_granularity": "row"}, "w_granularity is 'row'; allowed: 'tensor', 'channel', 'group'"),
        ({"a_granularity": "channel"}, "a_granularity is 'channel'; allowed: 'token', 'tensor', 'group'"),
        ({"w_group_size": 1}, "w_group_size is 1"),
        ({"a_group_size": 0}, "a_group_size is 0"),
        ({"learn_clip": 1}, "learn_clip is 1; allowed: True, False"),
        ({"clip_first": 0.0}, "clip_first is 0.0; allowed: True, False"),
        ({"w_symmetric": []}, r"w_symmetric is \[\]; allowed: True, False"),
        ({"w_symmetric": "yes"}, "w_symmetric is 'yes'; allowed: True, False"),
    ],
)
def test_bad_values(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        QuantConfig(**{"w_bits": 3, "a_bits": 3, **changes})


def test_json_round_trip() -> None:
    config = QVGenConfig(quant=QuantConfig(w_bits=3, a_bits=6, learn_clip=True, clip_buckets=10), rank=8)
    assert from_json(json.loads(json.dumps(to_json(config)))) == config
    assert to_json(config)["_type"] == "QVGenConfig"


def test_configs_saved_before_granularity_still_mean_the_same() -> None:
    old = {
        "_type": "QuantConfig", "_version": 1, "w_bits": 3, "a_bits": 3, "range_init": "search",
        "zero_point": "learned", "scale_param": "log", "learn_clip": True, "clip_init": 0.95,
        "clip_buckets": 1, "store_dtype": "bfloat16",
    }  # fmt: skip
    config = from_json(old)
    assert isinstance(config, QuantConfig)
    assert (config.w_symmetric, config.a_symmetric) == (False, False)
    assert (config.w_granularity, config.a_granularity) == ("channel", "token")


def test_a_symmetric_weight_has_no_zero_point_to_learn() -> None:
    assert QuantConfig(w_bits=3, a_bits=3).learns_zero_point
    assert not QuantConfig(w_bits=3, a_bits=3, zero_point="fixed").learns_zero_point
    assert not QuantConfig(w_bits=3, a_bits=3, w_symmetric=True).learns_zero_point


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"_type": "os.system"}, "_type of the quantization config is 'os.system'"),
        ({"_version": 99}, "version 99"),
        ({"w_bitz": 3}, "unknown key 'w_bitz'; did you mean 'w_bits'"),
        ({"w_bits": 40}, "w_bits is 40"),
    ],
)
def test_json_is_checked(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_json({**to_json(QuantConfig(w_bits=3, a_bits=3)), **changes})


def test_recipe_from_yaml_values() -> None:
    # YAML 1.1 reads 1e-4 as text
    recipe = from_mapping(TrainRecipe, {"steps": 3000, "lr_weights": "1e-4", "betas": [0.8, 0.9]})
    assert (recipe.steps, recipe.lr_weights, recipe.betas) == (3000, 1e-4, (0.8, 0.9))


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({"stpes": 3}, "recipe: unknown key 'stpes'; did you mean 'steps'"),
        ({"steps": 0}, "steps is 0"),
        ({"steps": 3}, "3 training steps are fewer than the 6 stages"),
        ({"lr_weights": "fast"}, "lr_weights is 'fast'"),
        ({"betas": [0.9]}, "betas"),
        ({"precision": "fp16"}, "precision is 'fp16'"),
        ("quick", "recipe: expected a mapping, got 'quick'"),
    ],
)
def test_method_checks_its_recipe(recipe: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        QVGen(w_bits=3, a_bits=3, recipe=recipe)


def test_learning_rate_curve() -> None:
    recipe = TrainRecipe(steps=20, warmup=0.2)
    assert [recipe.lr_factor(s) for s in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert recipe.lr_factor(4) == 1.0
    assert recipe.lr_factor(12) == pytest.approx(0.5)
    assert recipe.lr_factor(20) == pytest.approx(0.0)


def test_listing_methods_imports_no_torch() -> None:
    code = (
        "import sys, qvgen.method, baselines.rtn, baselines.lsq;"
        "qvgen.method.QVGen(w_bits=3, a_bits=3); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_unknown_keys_with_an_underscore_are_refused_too() -> None:
    data = to_json(QuantConfig(w_bits=3, a_bits=3))
    assert from_json(data) == QuantConfig(w_bits=3, a_bits=3)
    with pytest.raises(ValueError, match="unknown key '_secret'"):
        from_json({**data, "_secret": 1})


@pytest.mark.parametrize("end", ["drop", "keep"])
@pytest.mark.parametrize("option", [{"hold": 0.1}, {"decay_until": 0.5}, {"direction": "large"}])
def test_options_of_a_decay_that_never_comes_are_refused(end: Any, option: dict[str, Any]) -> None:
    quant = QuantConfig(w_bits=3, a_bits=3)
    with pytest.raises(ValueError, match=f"phi_end is '{end}': Phi stays whole .* leave them out"):
        QVGenConfig(quant=quant, phi_end=end, **option)
    assert QVGenConfig(quant=quant, phi_end=end).phi_end == end


def test_the_methods_options_have_the_librarys_defaults() -> None:
    """They are declared twice, so that each is an option of its own in the harness."""
    for w_bits, a_bits in ((4, 4), (2, 8)):
        made = QVGen(w_bits=w_bits, a_bits=a_bits).training_config()
        assert made == QVGenConfig(quant=QuantConfig(w_bits=w_bits, a_bits=a_bits, learn_clip=True))
