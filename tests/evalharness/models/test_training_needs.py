"""What a training needs: predicted, held against counted work, and refused where it does not fit."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from evalharness.cli.main import main
from evalharness.errors import UserError
from evalharness.machine.costs import (
    NOMINAL,
    observing_memory,
    start_memory,
    state_bytes,
    training_memory,
    training_seconds,
)
from evalharness.machine.pinned import training_host_memory
from evalharness.machine.preflight import Host, Training, host_need_of, need_of, preflight
from evalharness.registry import Registry
from tests.evalharness.models.full_size import Alive, NoAttention, model


def test_training_memory() -> None:
    """16 bytes a parameter of student and optimiser, 2 of the teacher, before activations."""
    built = model("cogvideox-2b")
    kept = training_memory(built.spec, built.settings, batch_size=1, gpus=1, checkpointing=True)
    assert kept["student, gradients, moments"] == pytest.approx(16 * 1.694e9, rel=0.001)
    assert kept["teacher"] == pytest.approx(2 * 1.694e9, rel=0.001)
    shared = training_memory(built.spec, built.settings, batch_size=1, gpus=8, checkpointing=True)
    assert shared["student, gradients, moments"] == pytest.approx(2 * 1.694e9, rel=0.001)
    large = training_memory(built.spec, built.settings, batch_size=2, gpus=1, checkpointing=True)
    assert large["activations"] == pytest.approx(2 * kept["activations"])
    whole = training_memory(built.spec, built.settings, batch_size=1, gpus=1, checkpointing=False)
    assert whole["activations"] > 5 * kept["activations"]


CONFIGS = sorted((Path(__file__).parents[3] / "configs" / "models").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_recipes_are_whole_and_fit_the_machines_they_name(path: Path) -> None:
    """Each is a valid command; on the GPUs of its first lines it passes the preflight."""
    from evalharness.cells import build_method
    from evalharness.cli.run import parse_config
    from evalharness.data.frames import Bucket
    from evalharness.plan import _cells

    config, _ = parse_config(["--config", str(path)])
    registry = Registry()
    [*_, cell] = _cells(config, registry)
    method: Any = build_method(registry, cell)
    built = model(config.model, protocol=str(config.protocol))
    text = path.read_text()
    bucket = Bucket.parse(text.partition("--bucket ")[2].split()[0])
    settings = dataclasses.replace(
        built.settings, frames=bucket.frames, height=bucket.height, width=bucket.width
    )
    gpus = int(text.partition("--nproc-per-node ")[2].split()[0]) if "torchrun" in text else 1
    assert method.recipe.accumulate % gpus == 0 and method.w_bits == 4 and method.rank == 32
    recipe = method.recipe
    training = Training.of(dataclasses.asdict(recipe), method.rank, gpus)
    preflight(built.spec, settings, training, 85e9, Host(8 * 64e9, min(gpus, 8)))
    # What its page says: memory, and time at the rates of the page, of all samples over the GPUs.
    page = (Path(__file__).parents[3] / "docs" / "models" / f"{config.model}.md").read_text()
    gigabytes = need_of(built.spec, settings, training)[0] / 1e9
    samples = recipe.steps * recipe.batch_size * recipe.accumulate
    hours = training_seconds(built.spec, settings, NOMINAL["cuda"]) * samples / gpus / 3600
    row = f"{gpus} GPU{'s' * (gpus > 1)}, {gigabytes:.0f} GB on each; its steps take at least {hours:.1f} h |"
    assert f"| predicted, training by `configs/models/{path.name}` | {row}" in page
    # The command that every page has for 8 GPUs, whatever number the recipe is for.
    eight = dataclasses.replace(training, gpus=8)
    if path.stem.startswith("qvgen-"):
        preflight(built.spec, settings, eight, 85e9, Host(8 * 64e9, 8))
        assert f"torchrun --nproc-per-node 8 -m evalharness run --config configs/models/{path.name}" in page
    if gpus > 8:
        on_each, on_eight = need_of(built.spec, settings, eight)[0] / 1e9, 8 * 3600
        least = training_seconds(built.spec, settings, NOMINAL["cuda"]) * samples / on_eight
        said = f"predicted {on_each:.0f} GB on each; its steps take at least {least:.0f} h"
        assert said in page and f"{gigabytes:.0f} GB on each: the" in page
    if built.spec.shape.parameters > 1e10 and built.spec.stored_bytes[1] == 4:
        text_parameters = built.spec.text_parameters if built.spec.stored_bytes[0] == 4 else 0
        read = 2 * (text_parameters + built.spec.experts * built.spec.shape.parameters)
        assert f"{read / 1e9:.0f} GB in\nbfloat16 lie on the host" in page
        assert f"{8 * read / 1e9:.0f} GB of eight processes" in page
    if config.model == "wan2.1-14b":
        offloaded = [dataclasses.replace(training, gpus=count, offload=1.0) for count in (8, 2)]
        each = [need_of(built.spec, settings, asked)[0] / 1e9 for asked in offloaded]
        host = [host_need_of(built.spec, asked) / 1e9 for asked in offloaded]
        assert f"{each[0]:.0f} GB on each of 8, or {each[1]:.0f} GB on each of 2 of 141 GB" in page
        assert f"the host {host[0]:.0f} GB or\n{host[1]:.0f} GB of each process" in page
    if training.save_async:
        state, each = state_bytes(built.spec, method.rank) / 1e9, host_need_of(built.spec, training) / 1e9
        assert f"first process, {state:.0f} GB beside {each:.0f} GB\nof each process." in page
    if training.offload:
        moments = training_host_memory(built.spec, **training.on_the_host()) / 1e9
        other = host_need_of(built.spec, training) / 1e9 - moments
        assert f"host, {moments:.0f} GB of each process" in text
        assert f"on the host: {moments:.0f} GB of each process, and\n{other:.0f} GB of the pipeline's" in page
        assert f"so {gpus * (moments + other):.0f} GB for eight" in page


def test_what_cannot_fit_is_refused_with_what_would() -> None:
    built = model("cogvideox-2b")
    asked = Training(batch_size=8, gpus=1, checkpointing=False)
    with pytest.raises(UserError) as caught:
        preflight(built.spec, built.settings, asked, 85e9)
    line = str(caught.value)
    assert "with 1 GPU, batch_size 8, gradient_checkpointing off takes about" in line
    assert "which have 85" in line
    offered = line.partition("what would fit: ")[2]
    assert offered.startswith("1 GPU, batch_size 8, gradient_checkpointing on")
    preflight(built.spec, built.settings, dataclasses.replace(asked, checkpointing=True), 85e9)
    with pytest.raises(UserError, match="it needs GPUs of"):
        preflight(built.spec, built.settings, asked, 3e9)


def test_what_lies_elsewhere_is_no_memory_of_a_gpu() -> None:
    """Wan2.1-14B by hand: 14.29e9 numbers, 40 blocks of 5120 channels, 20,280 tokens of 49x480x832."""
    built = model("wan2.1-14b", generation={"frames": 49, "height": 480, "width": 832})
    asked = Training(batch_size=1, gpus=2, checkpointing=True)

    def parts(**changes: Any) -> dict[str, float]:
        return need_of(built.spec, built.settings, dataclasses.replace(asked, **changes))[1]

    plain = parts()
    assert plain["student, gradients, moments"] == pytest.approx(16 * 14.29e9 / 2, rel=1e-3)
    moments = parts(offload=True)["student, gradients, moments"]
    assert moments == pytest.approx(8 * 14.29e9 / 2 + 1.61e9, rel=1e-3)
    assert plain["teacher"] == pytest.approx(28.58e9, rel=1e-3)
    assert parts(teacher_place="sharded")["teacher"] == pytest.approx(14.29e9, rel=1e-3)
    assert parts(teacher_place="host")["teacher"] == 0
    gathered = parts(teacher_place="host")["whole blocks while at work"]
    assert gathered - plain["whole blocks while at work"] == pytest.approx(4 * 14.29e9 / 40, rel=1e-3)
    kept = parts(keeps_attention=True)["activations"] - plain["activations"]
    assert kept == pytest.approx(2 * 40 * 20280 * 5120 * 2)
    with pytest.raises(UserError, match=r"what would fit: 2 GPUs, .* teacher sharded, offload moments; or 4"):
        preflight(built.spec, built.settings, asked, 141e9)
    # Before the first step: shards and a whole copy for the teacher, or the weights that are to be quantized.
    assert start_memory(built.spec, 8) == pytest.approx((0.5 + 2) * 14.29e9, rel=1e-3)
    assert start_memory(built.spec, 8, teacher=False) == pytest.approx(2 * 14.29e9, rel=1e-3)
    recipe = {"batch_size": 1, "gradient_checkpointing": True, "teacher": "host", "offload": "moments"}
    assert Training.of(recipe, 32, 2).words.endswith("teacher host, offload moments")


def test_what_the_host_has_no_room_for_is_refused_with_what_would_fit() -> None:
    """Wan2.1-14B on one GPU of 150 GB, by hand: 10 bytes of 14.29e9 numbers, with a twentieth of holes and
    two chunks that are not full, and 12 GB of other parts."""
    built = model("wan2.1-14b", generation={"frames": 17, "height": 480, "width": 832})
    asked = Training(batch_size=1, gpus=1, checkpointing=True, offload=1.0, teacher_place="host")
    by_hand = 1.05 * 10 * 14.29e9 + 2 * 2**30 + 11.36e9 + 0.51e9
    assert host_need_of(built.spec, asked) == pytest.approx(by_hand, rel=1e-3)
    preflight(built.spec, built.settings, asked, 150e9, Host(175e9))
    preflight(built.spec, built.settings, asked, 150e9)  # nobody knows
    with pytest.raises(
        UserError, match=r"about 164 GB of each process on the host, which has 150 GB free for one"
    ):
        preflight(built.spec, built.settings, asked, 150e9, Host(150e9))
    with pytest.raises(UserError) as caught:
        preflight(built.spec, built.settings, asked, 170e9, Host(150e9))
    first = str(caught.value).partition("what would fit: ")[2].partition(";")[0]
    assert first.endswith("teacher host, offload moments, offload_share 0.8")
    # Two processes of one host share it: 2 x 95 GB of all moments and the teacher are more than 150.
    assert "2 GPUs, batch_size 1, gradient_checkpointing on, teacher host, offload moments, off" in str(
        caught.value
    )
    partly = dataclasses.replace(asked, offload=0.8)
    preflight(built.spec, built.settings, partly, 170e9, Host(150e9))
    moved = need_of(built.spec, built.settings, partly)[0] - need_of(built.spec, built.settings, asked)[0]
    assert moved == pytest.approx(0.2 * 8 * 14.29e9, rel=1e-3)
    freed = host_need_of(built.spec, asked) - host_need_of(built.spec, partly)
    assert freed == pytest.approx(1.05 * moved)
    with pytest.raises(UserError) as caught:  # eight GPUs need nothing of the host
        preflight(
            built.spec,
            built.settings,
            dataclasses.replace(asked, gpus=8, teacher_place="sharded"),
            141e9,
            Host(8 * 20e9, 8),
        )
    offered = str(caught.value).partition("what would fit: ")[2].split("; or ")
    assert offered[0] == "8 GPUs, batch_size 1, gradient_checkpointing on, teacher sharded"
    here = dataclasses.replace(asked, gpus=8, offload=0.0, teacher_place="sharded")
    preflight(built.spec, built.settings, here, 150e9, Host(8e9, 8))  # keeps nothing there
    recipe = {"offload": "moments", "offload_share": 0.25, "teacher": "host"}
    assert Training.of(recipe, 0, 2).on_the_host() == {"gpus": 2, "teacher_on_host": True, "offload": 0.25}
    assert Training.of({**recipe, "offload": "off"}, 0, 2).offload == 0.0


def test_a_state_that_is_written_in_the_background_lies_on_the_host_once() -> None:
    """The shipped recipe of Wan2.1-14B on 8 GPUs, by hand: 12 bytes of 14.29e9 numbers and of Phi's 32 rows
    for both sides of 10 linears in each of 40 blocks; and 12 GB of other parts of each process."""
    built = model("wan2.1-14b", generation={"frames": 49, "height": 480, "width": 832})
    recipe = {"gradient_checkpointing": True, "teacher": "sharded", "save_async": True}
    asked = Training.of(recipe, 32, 8)
    state = 12 * (14.29e9 + 32 * 40 * (8 * 2 * 5120 + 2 * (5120 + 13824)))
    assert state_bytes(built.spec, 32) == pytest.approx(state, rel=1e-3)
    by_hand = state + 8 * (11.36e9 + 0.51e9)
    preflight(built.spec, built.settings, asked, 85e9, Host(1.01 * by_hand / 0.95, 8))
    with pytest.raises(UserError) as caught:
        preflight(built.spec, built.settings, asked, 85e9, Host(0.99 * by_hand / 0.95, 8))
    line = str(caught.value)
    assert "12 GB of each process and 173 GB of a state that is being written on the host" in line
    assert (
        "GB free for 8 processes; what would fit: 8 GPUs, batch_size 1, gradient_checkpointing on, " in line
    )
    assert "save_async" in line.partition("; what")[0] and "save_async" not in line.partition("; what")[2]
    assert not Training.of({**recipe, "save_every_s": 0}, 32, 8).save_async, "none is ever written"
    # On four hosts of two GPUs each only the first has the state, beside two processes.
    preflight(built.spec, built.settings, asked, 85e9, Host((state + 2 * 11.87e9) / 0.94, 2))


def test_the_step_that_waits_for_two_gpus_is_predicted() -> None:
    """``docs/benchmarks.md`` says what Wan2.1-14B will take on two; nobody has measured it."""
    built = model("wan2.1-14b", generation={"frames": 49, "height": 480, "width": 832})
    asked = Training(batch_size=1, gpus=2, checkpointing=True, rank=32, teacher_place="sharded", offload=1.0)
    each = need_of(built.spec, built.settings, asked)[0] / 1e9
    host = 2 * training_host_memory(built.spec, **asked.on_the_host()) / 1e9
    text = (Path(__file__).parents[3] / "docs" / "benchmarks.md").read_text()
    assert f"predicted: {each:.0f} GB on each GPU, {host:.0f} GB on the host:" in text


@pytest.mark.parametrize("name", ["cogvideox-2b", "wan2.1-1.3b", "wan2.1-14b"])
def test_batches_that_are_looked_at(name: str) -> None:
    """Two blocks of full width and full size of a clip, in float32 on the meta device."""
    built = model(name)
    spec, joint = built.spec, built.spec.shape.joint_text
    settings = dataclasses.replace(built.settings, frames=49, height=480, width=720 if joint else 832)
    import diffusers

    with torch.device("meta"):
        module = getattr(diffusers, spec.transformer)(**{**spec.shape.config, "num_layers": 2})
        size = (2, 13, 16, 60, 90) if joint else (2, 16, 13, 60, 104)
        inputs = torch.empty(size), torch.empty(2, spec.shape.text_tokens, 4096)
    with Alive() as alive, NoAttention(), torch.inference_mode():
        time = torch.zeros(2, dtype=torch.long, device="meta")
        module(hidden_states=inputs[0], encoder_hidden_states=inputs[1], timestep=time, return_dict=False)
    on_top = observing_memory(spec, settings, 2, 1) - 4 * spec.shape.parameters
    assert on_top == pytest.approx(alive.most, rel=0.02)
    # Several: the model as it was read, and one of its blocks in float32.
    shared = observing_memory(spec, settings, 2, 4) - on_top
    assert shared == pytest.approx((2 + 4 / spec.shape.layers) * spec.shape.parameters)


def test_a_look_that_does_not_fit_is_refused() -> None:
    """On 8 GPUs a step of 14B with offload takes 39 GB, and a batch of 8 clips of Q-DM's authors more."""
    built = model("wan2.1-14b", generation={"frames": 81, "height": 480, "width": 832})
    recipe = {"batch_size": 1, "gradient_checkpointing": True, "teacher": "sharded", "offload": "moments"}
    preflight(built.spec, built.settings, Training.of(recipe, 0, 8), 85e9)
    with pytest.raises(UserError, match="before its first step, while the method looks at batches of 8 in"):
        preflight(built.spec, built.settings, Training.of(recipe, 0, 8, observed=8), 85e9)


@pytest.mark.parametrize(
    ("method", "option", "samples"),
    [
        ("qdm", {}, 8), ("efficientdm", {"data": "clips"}, 8), ("efficientdm", {}, 2),
        ("lsq", {"recipe": {"batch_size": 5}}, 5),
    ],
)  # fmt: skip
def test_methods_say_what_they_look_at(method: str, option: dict[str, Any], samples: int) -> None:
    cls: Any = Registry().get("methods", method)
    made = [cls(w_bits=4, a_bits=4, mode=mode, **option) for mode in ("author", "fair")]
    assert [each.observed_samples for each in made] == [samples, 0]
    others = [Registry().get("methods", name)(w_bits=4, a_bits=4) for name in ("qvgen", "kd-qat")]
    assert [each.observed_samples for each in others] == [0, 0]


def test_the_prepare_stage_asks_before_it_trains(
    flags: Callable[..., list[str]],
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On a machine that says it has a GPU: refused in one line, and nothing was begun."""
    from evalharness.models.video.model import VideoModel

    asked: list[Any] = []

    def refuse(self: VideoModel, recipe: dict[str, Any], rank: int, gpus: int, observed: int = 0) -> None:
        asked.append((recipe["steps"], rank, gpus, observed))
        if recipe["steps"] == 77:
            raise UserError("too large")

    monkeypatch.setattr(VideoModel, "check_training", refuse)
    monkeypatch.setattr("evalharness.plan.resolve_device", lambda asked: "cuda")
    monkeypatch.chdir(tmp_path)
    run = ["run", *flags("wan2.1"), "--protocol", "smoke", "--workers", "0", "--data", "teacher",
           "--methods", "rtn,efficientdm,qvgen", "--set", "efficientdm.mode=author",
           "--set", "efficientdm.recipe.steps=3", "--set", "qvgen.recipe.steps=77",
           "--output", "out"]  # fmt: skip
    assert main(run) == 2
    assert "error: too large" in capfd.readouterr().err
    assert asked == [(3, 0, 1, 2), (77, 32, 1, 0)]
    assert not list(Path("out").glob("cells/*/prepare.json"))
