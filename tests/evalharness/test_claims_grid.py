"""Grids of trainings: what they expand to, what they refuse, and that the published ones are fair."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from evalharness.cells import build_method
from evalharness.errors import UserError
from evalharness.hashing import jsonable
from evalharness.registry import Registry
from evalharness.tinyworld.claims.grid import Arm, read_grid

CONFIGS = Path(__file__).parents[2] / "configs"
Change = Callable[[dict[str, Any]], None]


def small() -> dict[str, Any]:
    return {
        "compare": ["qvgen", "kd-qat"],
        "recipe": {"steps": 30, "lr_weights": 1e-3},
        "arms": {
            "kd-qat": {"method": "kd-qat"},
            "qvgen": {"method": "qvgen", "options": {"rank": 4, "recipe": {"lr_weights": 2e-3}}},
        },
        "blocks": {
            "core": {"bits": [4, "w3a4"], "seeds": [5, 7]},
            "long": {
                "arms": ["kd-qat"],
                "skip_layers": ["none", "std"],
                "axes": {"t": {"60": {"recipe": {"steps": 60}}, "90": {"recipe": {"steps": 90}}}},
            },
        },
    }


def read(folder: Path, data: Any) -> Any:
    path = folder / "grid.yaml"
    path.write_text(yaml.safe_dump(data, sort_keys=False))
    return read_grid(path)


def test_a_grid_is_every_arm_at_every_place_seed_by_seed(tmp_path: Path) -> None:
    grid = read(tmp_path, small())
    assert [arm.cell.id for arm in grid.arms] == [
        "kd-qat-w4a4-s5", "qvgen-w4a4-s5", "kd-qat-w3a4-s5", "qvgen-w3a4-s5",
        "kd-qat-w4a4-s7", "qvgen-w4a4-s7", "kd-qat-w3a4-s7", "qvgen-w3a4-s7",
        "kd-qat-t60-none-w3a3-s0", "kd-qat-t90-none-w3a3-s0", "kd-qat-t60-w3a3-s0", "kd-qat-t90-w3a3-s0",
    ]  # fmt: skip
    assert [arm.block for arm in grid.arms] == ["core"] * 8 + ["long"] * 4
    assert grid.arms[-1].axes == {"t": "90"} and grid.arms[8].skip_layers == "none"
    assert [arm.cell.id for arm in grid.chosen(["long"]).arms] == [a.cell.id for a in grid.arms[8:]]


def test_options_are_those_of_the_recipe_then_the_arm_then_the_point(tmp_path: Path) -> None:
    arms = {arm.cell.id: arm.cell.options for arm in read(tmp_path, small()).arms}
    assert arms["qvgen-w4a4-s5"] == {"rank": 4, "recipe": {"steps": 30, "lr_weights": 2e-3}}
    assert arms["kd-qat-t90-w3a3-s0"] == {"recipe": {"steps": 90, "lr_weights": 1e-3}}


def test_check_counts_the_steps_and_refuses_what_a_method_refuses(tmp_path: Path) -> None:
    assert read(tmp_path, small()).check(Registry()) == 8 * 30 + 2 * 60 + 2 * 90
    data = small()
    data["recipe"]["steps"] = 2
    with pytest.raises(UserError, match="2 training steps are fewer than the 3 stages"):
        read(tmp_path, data).check(Registry())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda g: g.update(blokcs={}), "unknown key of .*'blokcs'; did you mean 'blocks'"),
        (lambda g: g["blocks"]["core"].update(arms=["qvgan"]), "'qvgan'; did you mean 'qvgen'"),
        (lambda g: g.update(compare=["qvgen"]), r"compare is \['qvgen'\]; expected \[contender, baseline\]"),
        (lambda g: g.update(kept="drop"), "unknown arm in kept 'drop'"),
        (lambda g: g.update(hypotheses=[{"lower": "qvgen", "than": "lsq"}]), "arm that is compared 'lsq'"),
        (lambda g: g["blocks"]["core"].update(seeds=[1 << 20]), "seed 1048576; expected whole numbers"),
        (lambda g: g["blocks"]["core"].update(skip_layers=["some"]), "'some'.* Allowed: none, std"),
        (lambda g: g["arms"]["kd-qat"].pop("method"), "arm 'kd-qat': no method; expected {method: NAME"),
        (lambda g: g.update(training_clips=0), "training_clips is 0; expected a whole number from 1"),
        (lambda g: g.update(compare=5), "compare: expected a list such as .*, got 5"),
        (lambda g: g.update(compare="ab"), "compare: expected a list such as .*, got 'ab'"),
        (lambda g: g.update(hypotheses=5), "hypotheses: expected a list"),
        (lambda g: g.update(arms=[1]), r"arms: expected a mapping, got \[1\]"),
        (lambda g: g.update(blocks=["core"]), "blocks: expected a mapping"),
        (lambda g: g.update(recipe=3), "recipe: expected a mapping, got 3"),
        (lambda g: g["arms"]["qvgen"].update(options=[1]), "options of arm 'qvgen': expected a mapping"),
        (lambda g: g["blocks"]["core"].update(seeds=3), "seeds of block 'core': expected a list .*, got 3"),
        (lambda g: g["blocks"]["core"].update(seeds=[True]), "seed True; expected whole numbers"),
        (lambda g: g["blocks"]["core"].update(arms="ab"), "arms of block 'core': .* such as .*, got 'ab'"),
        (
            lambda g: g["blocks"]["core"].update(skip_layers="std"),
            "skip_layers of block 'core': expected a l",
        ),
        (lambda g: g["blocks"]["core"].update(bits=2.5), "bits of block 'core': expected bit widths"),
        (lambda g: g["blocks"]["long"].update(axes=[1]), r"axes of block 'long': .* mapping, got \[1\]"),
        (
            lambda g: g["blocks"]["long"].update(axes={"t": 60}),
            "axis 't' of block 'long': expected a mapping",
        ),
        (lambda g: g["blocks"]["long"]["axes"]["t"].update({"60": 60}), "point '60' of axis 't': expected"),
        (lambda g: g.update(blocks={}), "no arms; expected blocks with arms, bits and seeds"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, change: Change, message: str) -> None:
    data = small()
    change(data)
    with pytest.raises(UserError, match=message):
        read(tmp_path, data)


def test_one_name_cannot_mean_two_trainings(tmp_path: Path) -> None:
    data = small()
    data["arms"]["kd-qat-t60"] = {"method": "kd-qat"}
    data["blocks"]["again"] = {"arms": ["kd-qat-t60"]}
    with pytest.raises(UserError, match="kd-qat-t60-w3a3-s0: two trainings, of blocks long and again"):
        read(tmp_path, data)
    data = small()
    data["blocks"]["again"] = data["blocks"]["core"]
    assert len(read(tmp_path, data).arms) == 12, "the same training named twice is one"


def place(arm: Arm) -> str:
    cell = arm.cell
    return json.dumps([cell.bits.label, cell.seed, arm.skip_layers, dict(arm.axes)])


@pytest.mark.parametrize(("name", "blocks", "step_ms"), [
    ("main", ("core", "ablations"), 17), ("map", ("short", "bits", "long", "none"), 7),
])  # fmt: skip
def test_published_grids_are_fair_and_fit_their_budget(
    name: str, blocks: tuple[str, ...], step_ms: int
) -> None:
    grid, registry = read_grid(CONFIGS / f"claims-{name}.yaml"), Registry()
    steps = grid.chosen(blocks).check(registry)
    seconds = steps * step_ms / 1000 + len(grid.chosen(blocks).arms)  # starts overlap in three lanes
    assert seconds / 2 < 9.5 * 60, "two devices, without start-up"
    recipes: dict[str, set[str]] = {}
    quantizers: dict[str, set[str]] = {}
    for arm in grid.arms:
        made = jsonable(build_method(registry, arm.cell))
        recipes.setdefault(place(arm), set()).add(json.dumps({**made["recipe"], "loss": ""}))
        clips = {key: made.get(key) for key in ("w_bits", "a_bits", "learn_clip", "clip_buckets")}
        if arm.cell.method == "lsq":  # the authors' own has no clips to learn
            continue
        quantizers.setdefault(place(arm), set()).add(json.dumps(clips))
        assert made["recipe"]["steps"] % made["recipe"]["validate_every"] == 0, "the last step is validated"
    assert all(len(each) == 1 for each in [*recipes.values(), *quantizers.values()])
    for contender in (arm for arm in grid.arms if arm.name == grid.compare[0]):
        partners = {place(arm) for arm in grid.arms if arm.name == grid.compare[1]}
        assert place(contender) in partners
    seeds = {arm.cell.seed for arm in grid.arms}
    assert len(seeds) >= 3 and 0 not in seeds, "seed 0 suggested the hypotheses"
