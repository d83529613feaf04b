"""From flags and files to a plan."""

from __future__ import annotations

import dataclasses
import importlib
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evalharness.api import Bits, MetricInfo, Prompt
from evalharness.cli.run import parse_config
from evalharness.config import RunConfig, comma_list, merge_method_options, parse_bits, parse_seeds
from evalharness.errors import UserError
from evalharness.plan import RunPlan, build_plan
from evalharness.registry import Registry
from evalharness.subset import spread_prompts


@pytest.mark.parametrize(
    ("given_bits", "expected"),
    [
        (3, [(3, 3)]),
        ("3", [(3, 3)]),
        ("w4a6", [(4, 6)]),
        ("8,4, W3A3 ,3", [(8, 8), (4, 4), (3, 3)]),
        ([2, "w4a6"], [(2, 2), (4, 6)]),
    ],
)
def test_bits(given_bits: int | str | list[int | str], expected: list[tuple[int, int]]) -> None:
    assert parse_bits(given_bits) == [Bits(*pair) for pair in expected]


@pytest.mark.parametrize("bad", ["0", "1", "17", "x", "w4", "3.5", "-3", "w3a17", "", ",", "4,x"])
def test_bits_that_are_none(bad: str) -> None:
    with pytest.raises(UserError, match="bits"):
        parse_bits(bad)


def test_seeds() -> None:
    assert parse_seeds("0,1, 2,1") == [0, 1, 2]
    assert parse_seeds(7) == [7]
    assert parse_seeds(str(2**63 - 1)) == [2**63 - 1]
    with pytest.raises(
        UserError, match=r"--seeds 9223372036854775808: too large; .* 0 to 9223372036854775807"
    ):
        parse_seeds(str(2**63))
    for bad in ("a", "1,-2", "", "1.5", "²", "9" * 5000):
        with pytest.raises(UserError, match="--seeds"):
            parse_seeds(bad)


def test_comma_list() -> None:
    assert comma_list(" a,b,,a ") == ["a", "b"]
    assert comma_list(["a", "b"]) == ["a", "b"]
    assert comma_list("") == []


def test_options_by_flag_go_over_those_of_the_file() -> None:
    merged = merge_method_options(
        {"m": {"rank": 8, "recipe": {"steps": 5, "lr": 0.1}}},
        ["m.rank=16", "m.recipe.steps=7", "n.flag=true", "n.rate=1e-4", "n.word=cosine", "n.list=[1, 2]"],
    )
    assert merged == {
        "m": {"rank": 16, "recipe": {"steps": 7, "lr": 0.1}},
        "n": {"flag": True, "rate": 1e-4, "word": "cosine", "list": [1, 2]},
    }


@pytest.mark.parametrize("bad", ["rank=16", "m.rank", "m.=3", ".rank=3", "m.rank.x=3"])
def test_assignments_of_another_form(bad: str) -> None:
    with pytest.raises(UserError, match="--set"):
        merge_method_options({"m": {"rank": 1}}, [bad])


def test_flags_beat_the_file_and_the_file_beats_defaults(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(
        "methods: [lsq, qvgen]\nbits: [4, w3a3]\nseeds: [0, 1]\nbatch_size: 2\ntrain: true\nprofile: false\n"
        "method_options: {qvgen: {rank: 16}}\nplugin: [a.py]\n"
    )
    config, dry_run = parse_config(["--config", str(file), "--bits", "2", "--plugin", "b.py", "--profile"])
    assert not dry_run
    assert config == RunConfig(
        methods=["lsq", "qvgen"],
        bits="2",
        seeds=[0, 1],
        batch_size=2,
        train=True,
        profile=True,
        method_options={"qvgen": {"rank": 16}},
        plugin=["a.py", "b.py"],
    )
    assert parse_config([])[0] == RunConfig()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("metods: a", "unknown key 'metods'; did you mean 'methods'"),
        ("limit: many", "--limit many: expected int"),
        ("no_train: true", "unknown key 'no_train'; did you mean 'train'"),
        ("no_profile: true", "unknown key 'no_profile'; did you mean 'profile'"),
        ("seeds: [a]", r"^--seeds \['a'\]: expected str \| int \| list\[int\]$"),
        ("train: 3", "not boolean: 3"),
        ("model: [a]", r"--model \['a'\]: expected str"),
        ("- a", "config"),
        ("bits: [", "config"),
        ("device: tpu", "--device tpu: expected one of auto, cpu, cuda"),
    ],
)
def test_a_bad_file_is_one_clear_error(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=words):
        parse_config(["--config", str(file)])


PROMPTS = st.lists(st.sets(st.sampled_from("abcde"), min_size=1).map(sorted), min_size=1, max_size=30).map(
    lambda dimensions: [
        Prompt(id=f"{i:03d}", text=str(i), dimensions=tuple(names)) for i, names in enumerate(dimensions)
    ]
)


@given(PROMPTS, st.integers(1, 30))
def test_a_subset_is_ordered_nested_and_covers_what_it_can(prompts: list[Prompt], limit: int) -> None:
    present = sorted({name for prompt in prompts for name in prompt.dimensions})
    chosen = spread_prompts(prompts, present, limit)
    assert len(chosen) == min(limit, len(prompts))
    assert [p.id for p in chosen] == sorted(p.id for p in chosen)
    assert {p.id for p in chosen} <= {p.id for p in spread_prompts(prompts, present, limit + 1)}
    if limit >= len(present):
        assert {name for prompt in chosen for name in prompt.dimensions} == set(present)


def test_a_subset_is_balanced() -> None:
    """Nine prompts of a and three of b: six of them are three and three."""
    prompts = [Prompt(id=f"a{i}", text="", dimensions=("a",)) for i in range(9)]
    prompts += [Prompt(id=f"b{i}", text="", dimensions=("b",)) for i in range(3)]
    names = [p.dimensions[0] for p in spread_prompts(prompts, ["a", "b"], 6)]
    assert names == ["a"] * 3 + ["b"] * 3


def test_only_prompts_of_the_wanted_dimensions_count() -> None:
    prompts = [Prompt(id="1", text="", dimensions=("a",)), Prompt(id="2", text="", dimensions=("b",))]
    assert [p.id for p in spread_prompts(prompts, ["b"], None)] == ["2"]


def plan(**options: object) -> RunPlan:
    config = RunConfig(model="toy", device="cpu", **options)  # type: ignore[arg-type]
    return build_plan(config, Registry())


def test_cells_come_reference_first_then_by_bits(toy: Path) -> None:
    made = plan(methods="toy-train,bf16,toy-round", bits="4,w2a3", seeds="0,1")
    assert [cell.id for cell in made.cells] == [
        "bf16-s0",
        "bf16-s1",
        "toy-train-w4a4-s0",
        "toy-train-w4a4-s1",
        "toy-round-w4a4-s0",
        "toy-round-w4a4-s1",
        "toy-train-w2a3-s0",
        "toy-train-w2a3-s1",
        "toy-round-w2a3-s0",
        "toy-round-w2a3-s1",
    ]


def test_the_reference_is_always_there(toy: Path) -> None:
    assert [cell.id for cell in plan().cells] == ["bf16-s0"]


def test_identity_leaves_out_what_may_be_added_to_a_folder(toy: Path) -> None:
    base = plan(methods="toy-round").identity()
    assert plan(methods="toy-train", bits=2, seeds="5", limit=1, workers=7).identity() == base
    changed = plan(skip_layers="none").identity()
    assert {key for key in base if base[key] != changed[key]} == {"skip_layers"}


def test_the_same_seeds_whatever_the_limit(toy: Path) -> None:
    whole, part = plan(), plan(limit=3)
    seeds = {sample.id: sample.seed for sample in whole.samples(whole.cells[0])}
    assert {s.id: s.seed for s in part.samples(part.cells[0])}.items() <= seeds.items()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"methods": "toy-rond"}, "unknown method 'toy-rond'; did you mean 'toy-round'"),
        ({"model": "toyy"}, "unknown model 'toyy'; did you mean 'toy'"),
        ({"protocol": "to"}, "unknown protocol 'to'; did you mean 'toy'"),
        ({"dimensions": "motoin"}, "unknown dimension of protocol toy 'motoin'; did you mean 'motion'"),
        ({"batch_size": 2}, "--batch-size 2: more than 1 needs --device cuda"),
        ({"set": ["toy-round.shrink=0.5"]}, "'toy-round', which is not in --methods"),
        ({"methods": "toy-round", "set": ["toy-round.shink=1"]}, "did you mean 'shrink'"),
        (
            {"methods": "toy-round", "set": ["toy-round.shrink=7"]},
            "shrink is 7.0; expected a number",
        ),
        ({"methods": "toy-train", "set": ["toy-train.steps=2.5"]}, "steps=2.5: expected int"),
        ({"methods": "toy-train", "set": ["toy-train.steps=true"]}, "steps=True: expected int"),
        ({"limit": 0}, "--limit 0"),
        ({"workers": -1}, "--workers -1"),
        ({"train": True, "load": "/somewhere"}, "--train and --load /somewhere contradict"),
        ({"skip_layers": "all"}, "--skip-layers all"),
    ],
)
def test_mistakes_say_what_is_allowed(toy: Path, options: dict[str, object], words: str) -> None:
    with pytest.raises(UserError, match=words):
        build_plan(RunConfig(**{"model": "toy", "device": "cpu", **options}), Registry())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"high": 100.0}, "metric toy.motion: range 0..100; the mean needs 0..1, higher is better: scale it"),
        ({"low": -2.0}, "metric toy.motion: range -2..1; the mean needs"),
        ({"higher_is_better": False}, "metric toy.motion: lower is better; the mean needs"),
    ],
)
def test_metrics_on_another_scale_are_refused(
    toy: Path, monkeypatch: pytest.MonkeyPatch, facts: dict[str, Any], words: str
) -> None:
    motion = importlib.import_module("toybench.metrics").Motion

    monkeypatch.setattr(motion, "info", MetricInfo(**facts))
    with pytest.raises(UserError, match=re.escape(words)):
        plan()
    assert plan(dimensions="brightness").metrics == {"brightness": "toy.brightness"}


def test_a_cosine_is_on_the_scale(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    motion = importlib.import_module("toybench.metrics").Motion

    monkeypatch.setattr(motion, "info", MetricInfo(low=-1.0))
    assert "toy.motion" in plan().metrics.values()


def test_identity_names_the_libraries_that_make_a_video(toy: Path) -> None:
    import av
    import transformers

    identity = plan().identity()
    assert (identity["av"], identity["transformers"]) == (av.__version__, transformers.__version__)


def test_one_worker_at_a_time_holds_a_model_on_a_gpu(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Judges run on the CPU, so that scoring still uses them all."""
    assert plan(workers=5).model_workers == 5
    assert plan(workers=0).model_workers == 1
    monkeypatch.setattr("evalharness.plan.resolve_device", lambda asked: "cuda")
    made = plan(workers=5, batch_size=4)
    assert (made.workers, made.model_workers, made.batch_size) == (5, 1, 4)


def test_every_option_is_a_flag_and_a_key() -> None:
    """The public surface: change it deliberately, and the README with it."""
    assert [field.name for field in dataclasses.fields(RunConfig)] == [
        "methods",
        "bits",
        "model",
        "weights",
        "revision",
        "generation",
        "memory",
        "data",
        "protocol",
        "seeds",
        "limit",
        "stratified",
        "augmented",
        "dimensions",
        "metric",
        "output",
        "train",
        "load",
        "device",
        "workers",
        "batch_size",
        "skip_layers",
        "profile",
        "executor",
        "track",
        "execution",
        "attention",
        "peers",
        "plugin",
        "method_options",
        "variants",
        "set",
    ]


def test_a_stratified_choice_needs_a_number(toy: Path) -> None:
    with pytest.raises(UserError, match="--prompts 40"):
        RunConfig(stratified=True)
    config, _ = parse_config(["--prompts", "2", "--stratified"])
    assert (config.limit, config.stratified) == (2, True)
    assert len(plan(limit=2, stratified=True).prompts) == 2
