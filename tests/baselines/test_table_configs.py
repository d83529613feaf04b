"""The configs of the full small table: every training that a table loads is one that the grid makes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from evalharness.cells import Cell, build_method
from evalharness.config import parse_bits
from evalharness.hashing import jsonable
from evalharness.models.tinyworld import PIPELINE, SETTINGS
from evalharness.registry import Registry
from evalharness.tinyworld.claims.grid import Grid, read_grid
from qvgen.quantizers import ClipContext

CONFIGS = Path(__file__).parents[2] / "configs"
TRAINED = ("lsq", "kd-qat", "qvgen", "qdm", "efficientdm")


@pytest.fixture(scope="module")
def grid() -> Grid:
    return read_grid(CONFIGS / "tinyworld-table-training.yaml")


def recipe_of(grid: Grid, arm: str) -> dict[str, Any]:
    cells = [a.cell for a in grid.arms if a.name == arm]
    recipes: list[dict[str, Any]] = [jsonable(build_method(Registry(), cell))["recipe"] for cell in cells]
    assert all(recipe == recipes[0] for recipe in recipes)
    return recipes[0]


def test_all_trained_methods_have_one_budget_and_one_set_of_rates(grid: Grid) -> None:
    """But for the loss of LSQ, which has no teacher, and the rate of EfficientDM's adapter."""
    published = yaml.safe_load((CONFIGS / "tinyworld-published.yaml").read_text())
    shipped = published["method_options"]["qvgen"]["recipe"]
    usual = recipe_of(grid, "qvgen")
    assert {name: usual[name] for name in shipped} == shipped
    for arm in {a.name for a in grid.arms}:
        recipe = recipe_of(grid, arm)
        differing = {name for name in recipe if recipe[name] != usual[name]}
        allowed = {"lr_weights"} if arm.startswith("efficientdm") else {"loss"} if "lsq" in arm else set()
        assert differing <= allowed, arm
    assert {a.skip_layers for a in grid.arms} == {"std"} and {a.cell.seed for a in grid.arms} == {0}


def test_the_fair_table_finds_every_training(grid: Grid) -> None:
    table = yaml.safe_load((CONFIGS / "tinyworld-table.yaml").read_text())
    made = {arm.cell.checkpoint_name for arm in grid.arms}
    shipped = {folder.name for folder in (PIPELINE.parent / "checkpoints").iterdir() if folder.is_dir()}
    wanted = {f"{name}-{bits.label}" for name in TRAINED for bits in parse_bits(table["bits"])}
    assert len(wanted) == 30 and wanted <= made | shipped
    assert not made & shipped


def test_the_author_table_asks_for_the_very_options_that_were_trained(grid: Grid) -> None:
    """``run --load`` refuses a variant whose checkpoint was made with others."""
    table = yaml.safe_load((CONFIGS / "tinyworld-table-author.yaml").read_text())
    trained = {a.cell.label: a.cell for a in grid.arms if a.name.endswith("-author")}
    assert sorted(trained) == ["efficientdm-author", "lsq-author", "qdm-author"]
    for label, cell in trained.items():
        entry = table["variants"][label]
        asked = Cell(
            model=cell.model,
            method=entry["method"],
            bits=cell.bits,
            seed=0,
            options=entry["options"],
            label=label,
        )
        assert jsonable(build_method(Registry(), asked)) == jsonable(build_method(Registry(), cell))


def test_author_efficientdm_has_one_step_for_each_denoising_step(grid: Grid) -> None:
    from diffusers import CogVideoXDDIMScheduler

    [buckets] = {a.cell.options["buckets"] for a in grid.arms if a.name == "efficientdm-author"}
    config = json.loads((PIPELINE / "scheduler" / "scheduler_config.json").read_text())
    scheduler = CogVideoXDDIMScheduler.from_config(config)
    scheduler.set_timesteps(SETTINGS.steps)
    context = ClipContext(buckets)
    context.set_timestep(scheduler.timesteps)
    assert context.bucket is not None
    assert torch.equal(context.bucket.sort().values, torch.arange(SETTINGS.steps))
