"""Rows of their own for other options of one method: names, options, records, checkpoints, tables."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from evalharness.api import Bits
from evalharness.cells import Cell
from evalharness.cli.run import parse_config
from evalharness.config import RunConfig
from evalharness.errors import UserError
from evalharness.planfile import read_plan_file
from evalharness.registry import Registry
from evalharness.runfolder import RunFolder
from evalharness.variants import resolve_rows, split_names

Call = Callable[..., Any]
SHRUNK = {"shrunk": {"method": "toy-round", "options": {"shrink": 0.5}}}


def rows(**options: Any) -> dict[str, tuple[str, dict[str, Any]]]:
    """Label -> method and options, in order."""
    found = resolve_rows(RunConfig(model="toy", **options), Registry())
    return {row.label: (row.method, dict(row.options)) for row in found}


def prepared(folder: Path, cell: str) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((folder / "cells" / cell / "prepare.json").read_text())
    return record


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("a, b,,a", ["a", "b"]),
        ("a[x=1,y.z=2],b", ["a[x=1,y.z=2]", "b"]),
        ("a[x=1],b[x=1,y=2] ,c", ["a[x=1]", "b[x=1,y=2]", "c"]),
        (["a[x=1,y=2]", "b"], ["a[x=1,y=2]", "b"]),
        ("", []),
    ],
)
def test_commas_within_brackets_part_no_names(text: str | list[str], names: list[str]) -> None:
    assert split_names(text) == names


def test_all_names_every_installed_method_once(toy: Path) -> None:
    installed = Registry().names("methods")
    assert len(installed) > 2
    assert list(rows(methods="all")) == installed
    last = installed[-1]
    found = rows(methods=f"{last},bf16,all,toy-train[steps=2]")
    assert list(found) == [last, *installed[:-1], "toy-train-steps2"]
    with pytest.raises(UserError, match="unknown method 'al'"):
        rows(methods="al")


def test_a_variant_may_be_called_all(toy: Path) -> None:
    assert rows(methods="all", variants={"all": {"method": "toy-round"}}) == {"all": ("toy-round", {})}


def test_a_variant_has_the_options_of_its_method_under_its_own(toy: Path) -> None:
    """In rising order: method_options, --set of the method, the variant, --set of the label."""
    found = rows(
        methods="toy-train,long,bf16,toy-round",
        method_options={"toy-train": {"steps": 3, "recipe": {"lr": 1, "warmup": 2}}},
        variants={
            "long": {"method": "toy-train", "options": {"recipe": {"lr": 5}, "other": 1}},
            "unused": {"method": "toy-round"},
        },
        set=["toy-train.steps=4", "long.other=7"],
    )
    assert found == {
        "toy-train": ("toy-train", {"steps": 4, "recipe": {"lr": 1, "warmup": 2}}),
        "long": ("toy-train", {"steps": 4, "recipe": {"lr": 5, "warmup": 2}, "other": 7}),
        "toy-round": ("toy-round", {}),
    }


def test_a_variant_written_where_it_is_named(toy: Path) -> None:
    found = rows(
        methods="toy-train,toy-train[steps=7,recipe.lr=1e-4],toy-round[shrink=0.5]",
        set=["toy-train.recipe.warmup=0.1"],
    )
    assert found == {
        "toy-train": ("toy-train", {"recipe": {"warmup": 0.1}}),
        "toy-train-steps7-recipe.lr1e-4": ("toy-train", {"recipe": {"warmup": 0.1, "lr": 1e-4}, "steps": 7}),
        "toy-round-shrink0.5": ("toy-round", {"shrink": 0.5}),
    }


def test_variants_come_from_yaml_and_from_the_command_line(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(
        "methods: [a, r16]\nvariants:\n  r16: {method: a, options: {rank: 16, recipe: {steps: 2}}}\n"
    )
    config, _ = parse_config(["--config", str(file), "--methods", "r16,a[rank=8,recipe.steps=3]"])
    assert config.variants == {"r16": {"method": "a", "options": {"rank": 16, "recipe": {"steps": 2}}}}
    assert config.methods == "r16,a[rank=8,recipe.steps=3]"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"variants": {"v": {"method": "toy-rond"}}},
            "unknown method of variant 'v' 'toy-rond'; did you mean",
        ),
        ({"methods": "shrnk", "variants": SHRUNK}, "unknown method 'shrnk'; did you mean 'shrunk'"),
        (
            {"variants": {"toy-train": {"method": "toy-round"}}},
            "variant 'toy-train': method 'toy-train' has this name",
        ),
        (
            {"variants": {"Toy-Train": {"method": "toy-round"}}},
            "variant 'Toy-Train': method 'toy-train' has this name",
        ),
        ({"variants": {"bf16": {"method": "toy-round"}}}, "variant 'bf16': method 'bf16' has this name"),
        (
            {"variants": {**SHRUNK, "Shrunk": {"method": "toy-round"}}},
            "variant 'shrunk': variant 'Shrunk' has this name",
        ),
        ({"variants": {"../v": {"method": "toy-round"}}}, "variant '../v': only letters, digits"),
        ({"variants": {"v": {}}}, "variant 'v': 'method' is None; expected v: {method: NAME"),
        (
            {"variants": {"v": {"method": "toy-round", "option": {}}}},
            "unknown key of variant 'v' 'option'; did you mean 'options'",
        ),
        ({"variants": {"v": {"method": "toy-round", "options": 3}}}, "variant 'v': 'options' is 3"),
        ({"methods": "toy-round[shrink]"}, "--methods toy-round[shrink]: expected method[option=value,...]"),
        (
            {"methods": "toy-round[shrink=1"},
            "--methods toy-round[shrink=1: expected method[option=value,...]",
        ),
        ({"methods": "toy-rond[shrink=1]"}, "'toy-rond'; did you mean 'toy-round'"),
        ({"methods": "toy-round[shrink=1/2]"}, "variant 'toy-round-shrink1/2': only letters, digits"),
        ({"methods": "toy-round[a=1,a.b=2]"}, "a is 1, it has no parts"),
        (
            {"methods": "toy-train", "variants": SHRUNK, "set": ["shrunk.shrink=1"]},
            "--set gives options for method 'shrunk', which is not in --methods",
        ),
    ],
)
def test_mistakes_say_what_is_allowed(toy: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as caught:
        rows(**options)
    assert words in str(caught.value)


def test_one_label_for_two_sets_of_options_is_refused(toy: Path) -> None:
    declared = {"toy-round-shrink0.5": {"method": "toy-round", "options": {"shrink": 0.25}}}
    with pytest.raises(UserError, match=r"toy-round-shrink0.5.*declared with other options"):
        rows(methods="toy-round[shrink=0.5]", variants=declared)


def test_a_record_without_label_is_of_the_method_itself() -> None:
    old = {"model": "m", "method": "lsq", "w_bits": 3, "a_bits": 3, "seed": 0, "options": {}}
    cell = Cell.from_json(old)
    assert (cell.label, cell.id, cell.is_variant) == ("lsq", "lsq-w3a3-s0", False)
    variant = Cell(model="m", method="lsq", bits=Bits(3, 4), seed=1, label="kd", options={"kd": True})
    assert (variant.id, variant.checkpoint_name) == ("kd-w3a4-s1", "kd-w3a4")
    assert Cell.from_json(json.loads(json.dumps(variant.to_json()))) == variant


def test_method_and_variants_stand_in_one_run(toy_run: Call, tmp_path: Path) -> None:
    command = ("--methods", "toy-round,toy-round[shrink=0.3],shrunk", "--bits", "2", "--no-profile")
    command = (*command, "--variants", json.dumps(SHRUNK))
    result = toy_run(*command)
    assert result.code == 0, result.err
    out = tmp_path / "out"
    labels = ["toy-round", "toy-round-shrink0.3", "shrunk"]
    shrinks = [prepared(out, f"{label}-w2a2-s0")["config"]["shrink"] for label in labels]
    assert shrinks == [1.0, 0.3, 0.5]
    card = json.loads((out / "cells" / "shrunk-w2a2-s0" / "checkpoint" / "evalharness.json").read_text())
    assert (card["method"], card["label"]) == ("toy-round", "shrunk")
    hashes = {(out / "cells" / f"{label}-w2a2-s0" / "samples.jsonl").read_text() for label in labels}
    assert len(hashes) == 3
    with (out / "leaderboard.csv").open(newline="") as file:
        table = {row["method"]: row["mean"] for row in csv.DictReader(file)}
    assert set(table) == {"bf16", *labels}
    assert "" not in table.values()
    results = json.loads((out / "results.json").read_text())
    told = {cell["method"]: (cell["variant_of"], cell["options"]) for cell in results["cells"]}
    assert told["shrunk"] == ("toy-round", {"shrink": 0.5})
    assert told["toy-round"] == (None, {})
    assert {row["method"] for row in results["pooled"]} == {"bf16", *labels}
    text = (out / "leaderboard.md").read_text()
    assert "`shrunk` is toy-round (shrink=0.5); `toy-round-shrink0.3` is toy-round (shrink=0.3)" in text
    manifest = json.loads((out / "manifest.json").read_text())
    assert [cell["label"] for cell in manifest["config"]["cells"]] == ["bf16", *labels]
    assert "nothing to do: 4 cells" in toy_run(*command).err


def test_another_meaning_of_a_label_redoes_its_cell_alone(toy_run: Call, tmp_path: Path) -> None:
    def run(options: dict[str, Any]) -> Any:
        variants = json.dumps({"v": {"method": "toy-round", "options": options}})
        return toy_run("--methods", "toy-round,v", "--variants", variants, "--limit", "1", "--no-profile")

    run({"shrink": 0.5})
    result = run({"shrink": 0.4})
    assert "v-w3a3-s0: made with other options, weights or code before; making it again" in result.err
    assert "toy-round-w3a3-s0: made" not in result.err
    assert prepared(tmp_path / "out", "v-w3a3-s0")["config"]["shrink"] == 0.4


def test_a_folder_from_before_variants_is_read_and_added_to(toy_run: Call, tmp_path: Path) -> None:
    quick = ("--limit", "1", "--no-profile")
    toy_run("--methods", "toy-round", *quick)
    path = tmp_path / "out" / "plan.json"
    plan = json.loads(path.read_text())
    del plan["crc"]
    for cell in plan["cells"]:
        del cell["label"]
    path.write_text(json.dumps(plan))
    assert "nothing to do: 2 cells" in toy_run("--methods", "toy-round", *quick).err
    assert toy_run("--methods", "toy-round[shrink=0.5]", *quick).code == 0
    cells = read_plan_file(RunFolder(tmp_path / "out")).cells
    assert list(cells) == ["bf16-s0", "toy-round-w3a3-s0", "toy-round-shrink0.5-w3a3-s0"]


def test_a_dry_run_names_labels_and_an_option_that_is_none(toy_run: Call) -> None:
    result = toy_run("--methods", "toy-train[steps=3]", "--dry-run")
    assert "toy-train-steps3-w3a3-s0 train, 3 steps" in " ".join(result.out.split())
    result = toy_run("--methods", "toy-train[stesp=3]", "--dry-run")
    assert result.code == 2
    words = "unknown option of method toy-train (variant toy-train-stesp3) 'stesp'; did you mean 'steps'"
    assert words in result.err


def test_a_label_in_the_plan_that_leads_out_of_the_folder_is_refused(
    toy_run: Call, call: Call, tmp_path: Path
) -> None:
    toy_run("--methods", "toy-round", "--limit", "1", "--no-profile")
    path = tmp_path / "out" / "plan.json"
    plan = json.loads(path.read_text())
    del plan["crc"]
    plan["cells"][1]["label"] = "../../elsewhere"
    path.write_text(json.dumps(plan))
    (tmp_path / "out" / "events.jsonl").unlink()
    result = call("score", "out", "--workers", "0")
    assert result.code == 2
    assert "plan.json: cells: label '../../elsewhere': only letters, digits" in result.err


class TestPublishedCheckpoints:
    """The publisher ships toy-train (5 steps), and toy-train with 3 steps under a label."""

    @pytest.fixture
    def published(self, toy_run: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        folder = tmp_path / "published"
        toy_run("--methods", "toy-train,toy-train[steps=3]", "--output", "maker", "--limit", "1")
        for name in ("toy-train", "toy-train-steps3"):
            made = tmp_path / "maker" / "cells" / f"{name}-w3a3-s0" / "checkpoint"
            shutil.copytree(made, folder / f"{name}-w3a3")
        monkeypatch.setenv("TOY_PUBLISHED", str(folder))
        return folder

    def source(self, toy_run: Call, tmp_path: Path, method: str, *flags: str) -> tuple[str, int, str | None]:
        """Where the weights of that row came from, the steps they had, and the folder."""
        output = f"out-{len(list(tmp_path.iterdir()))}"
        quick = ("--limit", "1", "--no-profile", "--output", output)
        result = toy_run("--methods", method, *quick, *flags)
        assert result.code == 0, result.err
        [record] = [
            path for path in (tmp_path / output).glob("cells/*/prepare.json") if "bf16" not in str(path)
        ]
        facts = json.loads(record.read_text())
        return facts["source"], facts["config"]["steps"], facts["checkpoint"]

    def test_a_variant_is_loaded_only_where_it_is_what_was_asked(
        self, published: Path, toy_run: Call, tmp_path: Path
    ) -> None:
        def source(method: str, *flags: str) -> tuple[str, int, str | None]:
            return self.source(toy_run, tmp_path, method, *flags)

        assert source("toy-train") == ("loaded", 5, "published/toy-train-w3a3")
        assert source("toy-train[steps=3]") == ("loaded", 3, "published/toy-train-steps3-w3a3")
        assert source("toy-train[steps=4]") == ("trained", 4, "checkpoint")
        five = ("--variants", json.dumps({"five": {"method": "toy-train", "options": {"steps": 5}}}))
        assert source("five", *five) == ("loaded", 5, "published/toy-train-w3a3")
        four = (
            "--variants",
            json.dumps({"toy-train-steps3": {"method": "toy-train", "options": {"steps": 4}}}),
        )
        assert source("toy-train-steps3", *four) == ("trained", 4, "checkpoint")

    def test_load_path_looks_under_the_label_and_checks_the_options(
        self, published: Path, toy_run: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("TOY_PUBLISHED")
        loaded = self.source(toy_run, tmp_path, "toy-train[steps=3]", "--load", str(published))
        assert loaded == ("loaded", 3, "published/toy-train-steps3-w3a3")
        result = toy_run("--methods", "toy-train[steps=4]", "--load", str(published))
        assert "has no toy-train-steps4-w3a3" in result.err
        result = toy_run("--methods", "toy-train[steps=4]", "--load", str(published / "toy-train-w3a3"))
        assert result.code == 2
        assert "was made with other options than those of variant toy-train-steps4" in result.err

    @pytest.mark.parametrize(
        ("config", "source"),
        [
            ({"w_bits": 3, "a_bits": 3}, "loaded"),
            ({"w_bits": 3, "a_bits": 3, "steps": 5}, "loaded"),
            ({"w_bits": 3, "a_bits": 3, "steps": 4}, "trained"),
            ({"w_bits": 3, "a_bits": 3, "steps": 5, "gone": 1}, "trained"),
            ({"w_bits": 3, "a_bits": 3, "steps": "5"}, "trained"),
            ({"steps": 5}, "trained"),
        ],
    )
    def test_a_card_older_than_an_option_had_its_default(
        self, published: Path, toy_run: Call, tmp_path: Path, config: dict[str, Any], source: str
    ) -> None:
        """``steps`` of 5 is asked, which is the default; the card may not know of it."""
        card = published / "toy-train-w3a3" / "evalharness.json"
        card.write_text(json.dumps({**json.loads(card.read_text()), "config": config}))
        quick = ("--limit", "1", "--no-profile", "--set", "toy-train.steps=5")
        assert toy_run("--methods", "toy-train", *quick).code == 0
        assert prepared(tmp_path / "out", "toy-train-w3a3-s0")["source"] == source
