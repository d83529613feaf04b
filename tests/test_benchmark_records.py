"""Times and sizes in the documents are those of the records beside them."""

from __future__ import annotations

import json
import math
import re

import pytest

from qvgen.fused.rotate import Launch, usual_launch
from tests.records import ROOT, over, record, row


@pytest.mark.parametrize("setting", record("qat_cpu.json")["settings"])
def test_training_on_a_cpu(setting: str) -> None:
    found = record("qat_cpu.json")["settings"][setting]
    *ratios, plain_ms = row("benchmarks.md", setting)
    assert plain_ms == f"{found['sides']['plain']['median_ms']:.0f}"
    for side, cell in zip(("qvgen", "lsq", "qvgen_reference"), ratios, strict=True):
        median, turns = cell.split(" ", 1)
        assert median == f"{over(found['sides'], side, 'plain'):.2f}"
        least, largest = map(float, turns.strip("()").split(" to "))
        kept = found["ratios_of_turns"][f"{side}_to_plain"]  # to four digits
        assert least == pytest.approx(kept["min"], abs=0.00501)
        assert largest == pytest.approx(kept["max"], abs=0.00501)


def test_packed_layers_on_a_cpu() -> None:
    settings = record("packed_cpu.json")["settings"]
    found = [settings[f"{bits}, threads 1"] for bits in ("w4a4", "w3a3", "w2a2")]
    assert row("packed.md", "float32, ms") == [f"{s['times']['fp32']['median_ms']:.1f}" for s in found]
    worked = row("packed.md", "float32, ms of the processor")
    assert worked == [f"{s['processor']['fp32']['median_ms']:.1f}" for s in found]
    for first, side in (
        ("fake-quantized / float32", "fake"),
        ("packed, `cpu` / float32", "packed_cpu"),
        ("packed, `reference` / float32", "packed_reference"),
    ):
        for kind, words in (("times", ""), ("processor", "of the processor: ")):
            shown = [cell.strip("*") for cell in row("packed.md", words + first)]
            assert shown == [f"{over(s[kind], side, 'fp32'):.2f}" for s in found]
    held = "all tensors held, MB: float32 20.4, fake 23.9, packed `cpu`"
    assert row("packed.md", held) == [f"{s['held_mb']['packed_cpu']:.1f}" for s in found]
    assert {(f"{s['held_mb']['fp32']:.1f}", f"{s['held_mb']['fake']:.1f}") for s in found} == {
        ("20.4", "23.9")
    }
    shown = row("packed.md", "packed weights of quantized linears, MB")
    assert shown == [f"{s['packed_mb']:.2f}" for s in found]


def test_training_on_a_gpu() -> None:
    found = record("qat_step-h100.json")
    parts = found["parts"]
    sides, phi = parts["step"]["sides"], parts["phi"]
    linears = record("qat_linears-h100.json")["parts"]["linears"]  # measured again later
    plain, fused, again = (sides[name] for name in ("plain", "fused", "plain again"))

    def measured(first: str) -> str:
        return row("benchmarks.md", first)[0]

    ratio = 2 * fused["median_ms"] / (plain["median_ms"] + again["median_ms"])
    assert measured("QAT step over plain bf16 distillation, time") == (
        f"{ratio:.3f} ({fused['median_ms']:.0f} ms over {plain['median_ms']:.0f} and "
        f"{again['median_ms']:.0f} ms)"
    )
    assert measured("the same, peak memory") == (
        f"{fused['peak_mb'] / plain['peak_mb']:.3f} ({fused['peak_mb'] / 1e3:.2f} GB over "
        f"{plain['peak_mb'] / 1e3:.2f} GB)"
    )
    for how, times in (("as CUDA graphs", "as_graphs"), ("launched from Python", "variants")):
        ours, theirs = (linears[times][side]["median_ms"] for side in ("fused", "plain"))
        shown = measured(f"linears of a block over plain `nn.Linear`, {how}")
        assert shown == f"{ours / theirs:.2f} ({ours:.1f} ms over {theirs:.1f} ms)"
    times = linears["variants"]
    assert measured("released arithmetic over ours, launched from Python") == (
        f"{over(times, 'official', 'fused'):.1f} ({times['official']['median_ms']:.1f} ms over "
        f"{times['fused']['median_ms']:.1f} ms)"
    )
    assert measured("unfused over plain") == f"{over(times, 'unfused', 'plain'):.1f}"
    assert measured("released arithmetic over plain") == f"{over(times, 'official', 'plain'):.1f}"
    halving = phi["ratios"]["halving_s"]
    svds = phi["full_svds_all_layers_s"] / halving
    assert measured("full SVDs of all 245 layers over one rank halving") == (
        f"{round(svds, -2):.0f} ({halving:.3f} s)"
    )
    assert measured("error of a re-factorised product") == (
        f"{phi['ratios']['reconstruction_error']:.0e}".replace("e-0", "e-")
    )
    assert measured("range search and leading factors of all layers") == f"{phi['ratios']['init_s']:.0f} s"
    least = math.floor(min(phi["captured_energy"].values()) * 1e8) / 1e8
    assert measured("energy that Phi captures over the best of its rank") == f"{least:.8f} at least"
    assert found["commit"] == "30ccfe6"
    assert "set by hand" in found["note"]
    assert "Two runs are merged" in found["note"]


def test_packed_linears_on_a_gpu() -> None:
    parts = record("linear-h200.json")["parts"]
    for name, part in (("CogVideoX-2B", "cog_2b"), ("Wan2.1-1.3B", "wan_1_3b"), ("Wan2.1-14B", "wan_14b")):
        graphs, eager = parts[part]["as_graphs"], parts[part]["eager"]
        faster = [over(graphs, "bf16", side) for side in ("w4a4", "w3a3", "w4a4_shared_clips")]
        faster.append(over(eager, "bf16", "w4a4"))
        *shown, target = row("benchmarks.md", name)
        assert shown == [f"{times:.2f}" for times in faster]
        changes = (ROOT / "CHANGELOG.md").read_text()
        assert f"{faster[0]:.2f} ({name.removeprefix('Wan2.1-') if '14B' in name else name})" in changes
        assert faster[0] > max(map(float, re.findall(r"[\d.]+", target)))
    document = (ROOT / "docs" / "benchmarks.md").read_text()
    shapes = parts["gemm"]["shapes_m_n_k"]
    shown = [shape for shape in shapes if f"| {shape.replace('x', ' x ')} |" in document]
    assert len(shown) == 9
    for shape in shown:
        found = shapes[shape]
        rate = found["int8"]["pflop_per_s"]
        figures = [rate, over(found, "bf16", "int8"), over(found, "int8_equal_warps", "int8")]
        *cells, target = row("benchmarks.md", shape.replace("x", " x "))
        assert cells == [f"{figure:.2f}" for figure in figures]
        assert rate > max(map(float, re.findall(r"[\d.]+", target)))
    tuned = json.loads((ROOT / "qvgen" / "packed" / "triton_table.json").read_text())["gemm"]
    faster = [
        next(one["ms"] for one in entry["tried"] if not one["tiles"]["jobs"]) / entry["ms"]
        for entry in tuned
        if entry["m"] > 512
    ]
    assert len(faster) == 9 and f"it is {min(faster):.2f} to {max(faster):.2f} times, least" in document
    times = {
        shape: shapes[f"17776x{shape}"]["int8"]["median_ms"]
        for shape in ("1920x1920", "7680x1920", "1920x7680")
    }
    opening = record("linear_expand-h200.json")["parts"]["expand"]["matrices_n_k"]
    opened = {k: v["4"]["median_ms"] for k, v in opening.items()}
    count = {"1920x1920": 4, "7680x1920": 1, "1920x7680": 1}
    whole = parts["cog_2b"]["as_graphs"]["w4a4"]["median_ms"]
    products, expanding = (
        100 * sum(count[shape] * of[shape] for shape in count) / whole for of in (times, opened)
    )
    assert (
        f"products are about {products:.0f} %, quantizing {100 - products - expanding:.0f} %, "
        f"expanding the weights {expanding:.0f} %"
    ) in document


def test_quantizing_beside_the_best_copy() -> None:
    shapes = record("linear-h200.json")["parts"]["prologue"]["shapes_m_k"]
    for shape, found in shapes.items():
        best = min(("copy", "copy_by_kernel"), key=lambda side: float(found[side]["median_ms"]))
        shown = [f"{100 * over(found, best, 'quantize'):.0f} %", f"{found['quantize']['tb_per_s']:.2f}"]
        assert row("benchmarks.md", f"quantize {shape.replace('x', ' x ')}") == shown
        assert over(found, best, "quantize") >= 0.85, "the target"
    text = " ".join((ROOT / "docs" / "benchmarks.md").read_text().split())
    for side, words in (
        ("copy_by_kernel", "(an elementwise kernel's, {:.1f} to {:.1f} TB/s;"),
        ("copy", "the driver's moves {:.1f} to {:.1f} here;"),
    ):
        rates = [found[side]["tb_per_s"] for found in shapes.values()]
        assert words.format(min(rates), max(rates)) in text


def test_reads_with_more_in_them() -> None:
    """Shares of the best copy, least and largest of the models' widths."""
    kinds = record("linear-h200.json")["parts"]["prologue"]["kinds_shapes_m_k"]
    text = " ".join((ROOT / "docs" / "benchmarks.md").read_text().split())

    def shares(kind: str) -> str:
        found = [
            100 * min(over(times, side, "quantize") for side in ("copy", "copy_by_kernel"))
            for times in kinds[kind].values()
        ]
        return f"{min(found):.0f} to {max(found):.0f} %"

    assert (
        f"three sets of codes {shares('plain_groups')}, GELU {shares('gelu')}, a norm with modulation "
        f"{shares('norm')}, with three sets {shares('norm_groups')}."
    ) in text


def test_what_the_product_waits_for() -> None:
    kernels = record("gemm_profile-h200.json")["kernels"]
    busy = [f"{float(one['tensor cores'].split()[0]):.0f}" for one in kernels]
    cache = [f"{float(one['L2 cache'].split()[0]):.0f}" for one in kernels]
    text = " ".join((ROOT / "docs" / "benchmarks.md").read_text().split())
    assert (
        f"tensor cores are busy for {busy[0]} % of the time at K = 1920, before 73 %, and {busy[3]} % at "
        f"K = 5120, before 87 %; cuBLAS's bfloat16 for {busy[2]} and {busy[5]} %. The L2 cache gives "
        f"{cache[0]} and {cache[3]} %"
    ) in text
    clocks = sorted(one["clock"].split()[0] for one in kernels)
    assert f"with clocks of {clocks[0]} to {clocks[-1]} GHz" in text
    took = [one["duration"].split()[0] for one in kernels]
    assert f"product takes {float(took[0]):.0f} us, before 99 (bfloat16's {float(took[2]):.0f}," in text
    assert f"it takes {took[3]} ms, before 1.03 (bfloat16's {took[5]}," in text
    idle = [f"{100 - float(kernels[at]['tensor cores'].split()[0]):.0f}" for at in (3, 0)]
    packed = " ".join((ROOT / "docs" / "packed.md").read_text().split())
    assert f"now for {idle[0]} and {idle[1]} %" in packed


COG_PEERS = ("linear_peers-h200.json", "cog_2b")


@pytest.mark.parametrize(
    ("first", "peer"),
    [("torchao float8, a scale a row", "torchao-float8"), ("torchao int8", "torchao-int8"),
     ("Wan2.1-14B's block, torchao float8", "torchao-float8")],
)  # fmt: skip
def test_other_libraries_linears(first: str, peer: str) -> None:
    name, block = ("linear_peers_wan-h200.json", "wan_14b") if "14B" in first else COG_PEERS
    found = record(name)["parts"]["peers"]["blocks"][block][peer]
    theirs, ours = (over(found["times"], "bf16", side) for side in (peer, "w4a4"))
    held = found["weights_mb"]
    assert row("benchmarks.md", first) == [
        f"{theirs:.2f}", f"{ours:.2f}", f"{held[peer]:.1f}", f"{held['w4a4']:.1f}"
    ]  # fmt: skip
    if block == "wan_14b":
        text = " ".join((ROOT / "docs" / "benchmarks.md").read_text().split())
        least = [f"{found['times'][side]['min_ms']:.2f}" for side in (peer, "w4a4")]
        assert f"W4A4 is {over(found['times'], peer, 'w4a4'):.3f} times as fast as float8" in text
        assert f"the shortest are {least[0]} ms of float8 and {least[1]} of W4A4" in text


def test_rotation_on_a_gpu() -> None:
    linears = record("hadamard-h100.json")["parts"]["shares"]["linears"]
    rotating, plain = "rotate and quantize", "quantize"
    for name, found in linears.items():
        times = {side: entry["median_ms"] for side, entry in found["times"].items()}
        added = [
            100 * (times[ours] - times[theirs]) / times["linear"]
            for ours, theirs in (
                (f"{rotating}, fastest launch", plain),
                (f"{rotating} to integers", f"{plain} to integers"),
                (f"{rotating}, long kernel", plain),
            )
        ]
        shown = row("benchmarks.md", name.replace("->", "to"))
        alone = f"{100 * times[plain] / times['linear']:.0f} %"
        assert shown[:3] == [f"{times['linear']:.3f} ms", alone, f"{added[0]:.1f} %"]
        assert shown[4:] == [f"{added[1]:.1f} %", f"{added[2]:.0f} %"]
        assert added[0] < float(shown[3].removesuffix(" %"))


def test_the_fastest_launches_of_the_rotation_are_the_shipped_ones() -> None:
    tried = record("hadamard-h100.json")["parts"]["launches"]["launches"]
    for width, table in (("1920", 2048), ("7680", 8192)):
        fastest = min(tried[width], key=lambda one: one["median_ms"])
        fastest.pop("median_ms")
        assert Launch(**fastest) == usual_launch(table, chained=True)


@pytest.mark.parametrize(
    ("model", "part", "name"),
    [("CogVideoX-2B", "cog_2b", "w4a4"), ("CogVideoX-2B", "cog_2b", "w3a3"),
     ("Wan2.1-1.3B", "wan_1_3b", "w4a4"), ("Wan2.1-1.3B", "wan_1_3b", "w3a3"),
     ("Wan2.1-1.3B", "wan_1_3b", "w4a4_attention8"), ("Wan2.1-14B", "wan_14b", "w4a4")],
)  # fmt: skip
def test_a_step_with_packed_weights_on_a_gpu(model: str, part: str, name: str) -> None:
    measured = record("step-h200.json")["parts"][part]
    assert measured["bf16_weights"].startswith("those that the codes of the variant in turn stand for")
    found = measured["variants"][name]
    times = {side: entry["ms"] for side, entry in found["times"].items()}
    milliseconds, *ratios, weights = row("benchmarks.md", f"{model}, `{name}`")
    assert (milliseconds, weights) == (f"{times[name]:.1f}", f"{found['weights_mb']:.0f}")
    for cell, side in zip(ratios, ("bf16_eager", "bf16_best"), strict=True):
        faster, *targets = map(float, re.findall(r"[\d.]+", cell))
        assert f"{faster:.2f}" == f"{times[side] / times[name]:.2f}"
        assert faster > min(targets, default=0)
    assert found["execution"] == "real"


@pytest.mark.parametrize(
    ("name", "of"), [("w3a3", "step_former-h200.json"), ("w4a4", "step_equal-h200.json")]
)
def test_steps_of_former_kernels(name: str, of: str) -> None:
    ours = record(of)["parts"]["wan_14b"]["variants"][name]
    times = {side: entry["ms"] for side, entry in ours["times"].items()}
    assert row("benchmarks.md", f"Wan2.1-14B, `{name}`, former kernels") == [
        f"{times[name]:.1f}",
        *(f"{times[side] / times[name]:.2f}" for side in ("bf16_eager", "bf16_best")),
        f"{ours['weights_mb']:.0f}",
    ]


def test_where_the_time_of_a_step_goes() -> None:
    """Attention beside bfloat16's, the rest of a step, what changed in the 14B model's; and the README."""
    parts = record("step-h200.json")["parts"]
    text = " ".join((ROOT / "docs" / "benchmarks.md").read_text().split())
    ours, best, sides = [], [], []
    for name in ("cog_2b", "wan_1_3b", "wan_14b"):
        found = parts[name]["variants"]["w4a4"]
        ours.append(found["kernels"][0]["ms"])
        best.append(parts[name]["bf16_best_kernels"][0]["ms"])
        sides.append({side: entry["ms"] for side, entry in found["times"].items()})
    left = [(side["bf16_best"] - b, side["w4a4"] - a) for side, a, b in zip(sides, ours, best, strict=True)]
    assert (
        "It takes {:.0f} of CogVideoX-2B's {:.0f} ms, {:.0f} of {:.0f} and {:.0f} of {:.0f} of Wan's".format(
            *(number for a, side in zip(ours, sides, strict=True) for number in (a, side["w4a4"]))
        )
        in text
    )
    assert "`bf16_best` ({:.0f}, {:.0f} and {:.0f} ms)".format(*best) in text
    words = "shrinks from {:.0f} to {:.0f} ms, from {:.0f} to {:.0f}, and from {:.0f} to {:.0f}."
    assert words.format(*(number for pair in left for number in pair)) in text
    former = record("step_equal-h200.json")["parts"]["wan_14b"]["variants"]["w4a4"]["kernels"]
    now = parts["wan_14b"]["variants"]["w4a4"]["kernels"]
    of = [{kernel["name"]: kernel["ms"] for kernel in kernels} for kernels in (former, now)]
    assert f"from {of[0]['quantize_tokens']:.0f} to {of[1]['quantize_pairs']:.0f} ms" in text
    norms, products = "norm_quantize_tokens", "int8_gemm_by_jobs"
    assert f"quantizing from {of[0][norms]:.0f} to {of[1][norms]:.0f}. But" in text
    assert f"now with GELU, took {of[1][products]:.0f} ms beside {of[0][products]:.0f}" in text
    before = record("step_equal-h200.json")["parts"]["wan_14b"]["variants"]["w4a4"]["times"]
    slower = [100 * (sides[2][side] / before[side]["ms"] - 1) for side in ("bf16_eager", "bf16_best")]
    assert f"bf16 took {slower[0]:.1f} % (as shipped) and {slower[1]:.1f} % (best) longer on it" in text
    other = record("step_former-h200.json")["parts"]["wan_14b"]["bf16_best_kernels"][0]["ms"]
    assert f"bf16's attention took {other:.0f} ms" in text
    readme = (ROOT / "README.md").read_text()
    shipped, fast = (
        [f"{side[plain] / side['w4a4']:.2f}" for side in sides] for plain in ("bf16_eager", "bf16_best")
    )
    names = " (CogVideoX-2B), ", " (Wan2.1-1.3B) and ", " (Wan2.1-14B) times"
    assert "".join(f"{ratio}{name}" for ratio, name in zip(shipped, names, strict=True)) in readme
    assert f"and {fast[0]}, {fast[1]} and {fast[2]} times as fast as the best bf16" in readme


def test_how_far_a_fused_call_is_from_the_plain_one() -> None:
    parts, former = record("step-h200.json")["parts"], record("step_former-h200.json")["parts"]
    text = " ".join((ROOT / "docs" / "benchmarks.md").read_text().split())
    models = [parts[name] for name in ("cog_2b", "wan_1_3b", "wan_14b")]
    three_bits = [*models[:2], former["wan_14b"]]
    for name, of in (("w4a4", models), ("w3a3", three_bits)):
        found = [f"{model['variants'][name]['distance_to_plain_execution']:.3f}" for model in of]
        assert f"{name.upper()} {', '.join(found)}" in text
    one, two, three = (f"{model['bf16_best_to_eager_distance']:.3f}" for model in models)
    assert f"compiled bfloat16 is {one}, {two} and {three} from eager" in text


@pytest.mark.parametrize("name", ["w4a4", "w3a3", "w8a8"])
def test_memory_of_the_largest_model(name: str) -> None:
    part = record("memory-h200.json")["parts"]["denoise"]["calls"][name]
    figures = [part[key] / 1e3 for key in ("held_mb", "allocated_mb", "reserved_mb")]
    text = (ROOT / "docs" / "benchmarks.md").read_text()
    rows = text.split("| Wan2.1-14B, one call |")[1].splitlines()
    [line] = [line for line in rows if line.startswith(f"| `{name}` | ")][:1]
    assert line == f"| `{name}` | " + " | ".join(f"{figure:.1f}" for figure in figures) + " |"


@pytest.mark.parametrize(
    ("first", "how"),
    [("`load_packed`, tensor by tensor", "stream"), ("`from_pretrained`", "from_pretrained")],
)
def test_loading_the_largest_model(first: str, how: str) -> None:
    part = record("memory-h200.json")["parts"]["load"]
    ratios, seconds = part["ratios"][how], part["loads"][how]["seconds"]
    shown = [ratios["host_peak_to_disk"], ratios["device_peak_to_disk"]]
    assert row("benchmarks.md", first) == [*(f"{ratio:.2f}" for ratio in shown), f"{seconds:.1f}"]


def test_weights_on_the_device() -> None:
    found = record("memory-h100.json")["parts"]["weights"]["ratios"]
    for name, model in (("CogVideoX-2B", "cog_2b"), ("Wan2.1-1.3B", "wan_1_3b"), ("Wan2.1-14B", "wan_14b")):
        sides = [found[f"{model} {width}"] for width in ("w4", "w3")]
        wanted = [f"{side[part]:.2f}" for side in sides for part in ("quantized", "whole_model")]
        assert row("benchmarks.md", f"{name}, weights") == wanted


def test_quantizing_after_training_on_a_cpu() -> None:
    for name, found in record("ptq_cpu.json")["methods"].items():
        first, again, target = row("benchmarks.md", f"`{name}`")
        assert (first, again) == (f"{found['seconds']:.1f}", f"{found['seconds_calibrated']:.1f}")
        assert target == ("" if found["target_s"] is None else f"{found['target_s']:.0f}")


@pytest.mark.parametrize("method", ["viditq", "svdquant"])
def test_calibrating_and_quantizing_at_full_size(method: str) -> None:
    found = record("ptq_time-h100.json")["parts"][method]
    seconds = {name: phase["seconds"] for name, phase in found["phases"].items()}
    peak = max(phase["peak_gb"] for phase in found["phases"].values())
    total, calibration, rest, shown_peak, target = row("benchmarks.md", f"`{method}`, CogVideoX-2B")
    assert found["complete"] and found["groups_done"] == found["groups"]
    assert total == f"{sum(seconds.values()):.1f}" and calibration == f"{seconds.pop('calibration'):.1f}"
    assert rest == f"{sum(seconds.values()):.1f}" and shown_peak == f"{peak:.1f}"
    assert float(target) == found["ratios"]["target_s"] > found["ratios"]["seconds"]


def test_videos_of_full_size_models() -> None:
    names = {"cog_2b": "CogVideoX-2B", "wan_1_3b": "Wan2.1-1.3B", "wan_14b": "Wan2.1-14B"}
    forms = {"packed": "W4A4", "bf16": "bf16"}
    for part, found in record("generate-h100.json")["parts"].items():
        for run, made in found["runs"].items():
            form, preset = run.split(":")
            *peaks, seconds = row("benchmarks.md", f"{names[part]}, {forms[form]}, `{preset}`")
            assert seconds == f"{made['phases']['denoise']['seconds']:.1f}"
            for phase, said in zip(("text", "denoise", "decode"), peaks, strict=True):
                ratio = found["ratios"][run].get(phase)
                assert bool(said) == (ratio is not None)
                if said:
                    measured = made["phases"][phase]["allocated_gb"]
                    assert said == f"{measured:.1f} ({ratio:.2f})"
                    assert ratio == pytest.approx(measured / made["predicted_gb"][phase], rel=1e-3)


@pytest.mark.parametrize(
    ("name", "first"), [("cog_2b", "CogVideoX-2B, 49x480x720"), ("1.3b", "Wan2.1-1.3B, 49x480x832")]
)
def test_training_steps_of_full_size_models(name: str, first: str) -> None:
    found = record(f"train_scale-{name}-h100.json")
    said = row("benchmarks.md", f"{first} ([record](../results/benchmarks/train_scale-{name}-h100.json))")
    ratio = found["step_peak_gb"] / found["predicted_step_peak_gb"]
    assert [float(number) for number in said] == pytest.approx(
        [found["recipe"]["accumulate"], found["step_s"], found["step_peak_gb"], ratio], abs=0.06
    )
    assert ratio == pytest.approx(found["peak_to_predicted"], abs=1e-3) and 0.85 < ratio < 1.15


@pytest.mark.parametrize(
    ("first", "call"),
    [("quantize tokens", "quantize"), ("expand a weight", "expand"), ("a packed layer", "a layer"),
     ("multiply, three descriptors", "multiply"), ("three layers of one input", "three layers of one input")],
)  # fmt: skip
def test_launches_from_python(first: str, call: str) -> None:
    found = record("launches.json")["calls"][call]
    shown = [f"{found[way]:.0f}" for way in ("tritons_way_us", "again_us")]
    assert row("benchmarks.md", f"Python, {first}") == shown
    assert found["again_us"] < 0.7 * found["tritons_way_us"]
