"""What the loaded models compute, against the pipelines themselves and against formulas."""

from __future__ import annotations

import copy
import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from evalharness.errors import UserError
from evalharness.modeloptions import ModelOptions, build_model
from evalharness.models.video.captions import captions
from evalharness.models.video.experts import IN_A_ROW, TwoExperts, same_side
from evalharness.models.video.wan import Wan22Pair
from evalharness.protocols.vbench import VBenchProtocol
from evalharness.registry import Registry

Load = Callable[..., Any]


@pytest.fixture
def load(tiny: ModuleType, folders: Callable[[str], Path]) -> Load:
    def made(kind: str, *, data: str | None = "teacher", memory: str = "phases", **settings: Any) -> Any:
        name, generation = {"wan2.2-5b": ("wan", tiny.WAN)}.get(kind) or tiny.KINDS[kind][1:]
        options = ModelOptions(
            weights=str(folders(kind)), generation={**generation, **settings}, data=data, memory=memory
        )
        return build_model(Registry(), name, options).load("cpu")

    return made


KINDS = ["cogvideox-2b", "cogvideox1.5", "wan2.1", "wan2.2-pair", "wan2.2-5b"]


@pytest.mark.parametrize("kind", KINDS)
def test_videos_are_those_of_the_plain_pipeline(
    kind: str, load: Load, tiny: ModuleType, folders: Callable[[str], Path]
) -> None:
    """Cached prompts, phases and the experts' switch change nothing: diffusers' own call makes the same."""
    import diffusers

    name = "CogVideoXPipeline" if "cog" in kind else "WanPipeline"
    plain = getattr(diffusers, name).from_pretrained(folders(kind))
    plain.set_progress_bar_config(disable=True)
    config = plain.scheduler.config
    if "cog" in kind:
        plain.scheduler = type(plain.scheduler).from_config(config, timestep_spacing="trailing")
    size = 64 if kind == "wan2.2-5b" else 32
    settings: dict[str, Any] = {"height": size, "width": size, "guidance": 4.0}
    if "cog" in kind:
        rest: dict[str, Any] = {"use_dynamic_cfg": True}
        settings["scheduler"] = type(plain.scheduler).__name__
        frames = 9
    else:
        rest = {"guidance_scale_2": 2.0} if kind == "wan2.2-pair" else {}
        settings |= {"guidance_2": 2.0} if rest else {}
        frames = 5
    with torch.inference_mode():
        wanted = plain(
            prompt=["a red boat", "the river"], negative_prompt="" if "cog" in kind else ["", ""],
            height=size, width=size, num_frames=frames, num_inference_steps=2, guidance_scale=4.0,
            generator=[torch.Generator().manual_seed(seed) for seed in (5, 6)], max_sequence_length=8,
            output_type="np", **rest,
        ).frames  # fmt: skip
    loaded = load(kind, **settings)
    found = loaded.generate(["a red boat", "the river"], [5, 6])
    assert found.dtype == np.uint8 and found.shape == (2, frames, size, size, 3)
    assert np.abs(found.astype(int) - np.round(np.clip(wanted, 0, 1) * 255)).max() <= 1
    alone = loaded.generate(["the river"], [6])
    assert np.abs(alone[0].astype(int) - found[1]).max() <= 1


def test_one_starting_noise_for_all(load: Load) -> None:
    loaded = load("wan2.1", fixed_noise=42, guidance=1.0)
    first, second = loaded.generate(["a goat", "a goat"], [1, 2])
    assert np.array_equal(first, second)
    first, second = load("wan2.1", guidance=1.0).generate(["a goat", "a goat"], [1, 2])
    assert not np.array_equal(first, second)


@pytest.mark.parametrize(
    ("kind", "std", "quantized"),
    [
        ("cogvideox-2b", {"patch_embed.text_proj", "time_embedding.linear_1", "proj_out"}, "attn1.to_q"),
        ("wan2.1", {"condition_embedder.time_proj", "proj_out"}, "ffn.net.2"),
        ("wan2.2-pair", {"high.proj_out", "low.condition_embedder.text_embedder.linear_1"}, "attn2.to_v"),
    ],
)
def test_skip_presets(kind: str, std: set[str], quantized: str, load: Load) -> None:
    loaded = load(kind)
    linears = [name for name, part in loaded.transformer.named_modules() if isinstance(part, nn.Linear)]
    assert loaded.skip_layers("none") == ()
    spared = set(loaded.skip_layers("std"))
    assert std <= spared < set(linears)
    kept = set(linears) - spared
    assert any(quantized in name for name in kept)
    assert all(".attn" in name or ".ff" in name for name in kept)
    with pytest.raises(ValueError, match="knows none and std"):
        loaded.skip_layers("all")


def test_cogvideox_batches_follow_the_forward_process(load: Load) -> None:
    """x_t = a x0 + s e and v = a e - s x0, so that x0 = a x_t - s v."""
    loaded = load("cogvideox-2b")
    clean = torch.randn(3, 4, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    batch = loaded.noisy_batch(clean, torch.zeros(3, 8, 16), torch.Generator().manual_seed(2))
    alphas = loaded.pipeline.scheduler.alphas_cumprod[batch.inputs["timestep"]].view(-1, 1, 1, 1, 1)
    back = alphas.sqrt() * batch.inputs["hidden_states"] - (1 - alphas).sqrt() * batch.target
    torch.testing.assert_close(back.float(), clean.permute(0, 2, 1, 3, 4), rtol=1e-4, atol=1e-4)


def test_wan_batches_follow_the_straight_path(load: Load) -> None:
    loaded = load("wan2.1")
    clean = torch.randn(64, 4, 2, 4, 4, generator=torch.Generator().manual_seed(1))
    batch = loaded.noisy_batch(clean, torch.zeros(64, 8, 16), torch.Generator().manual_seed(2))
    time = batch.inputs["timestep"]
    assert 1 <= int(time.min()) < 100 and 900 < int(time.max()) <= 1000
    sigma = (time / 1000).view(-1, 1, 1, 1, 1)
    torch.testing.assert_close(
        batch.inputs["hidden_states"] - sigma * batch.target, clean, rtol=1e-4, atol=1e-4
    )


def test_batches_of_a_pair_lie_on_one_side(load: Load) -> None:
    loaded = load("wan2.2-pair")
    generator = torch.Generator().manual_seed(0)
    high = 0
    for _ in range(60):
        time = loaded.noisy_batch(torch.zeros(4, 4, 2, 4, 4), torch.zeros(4, 8, 16), generator).inputs[
            "timestep"
        ]
        assert bool((time >= 800).all()) or bool((time < 800).all())
        high += int(time[0] >= 800)
    assert 3 <= high <= 25  # a fifth of the timesteps


@pytest.mark.parametrize("data", ["clips", "teacher"])
def test_processes_that_train_a_pair_need_the_same_expert(data: str, load: Load) -> None:
    """Of each two, four ... batches every process has one; none is lost, and the order is always the same."""
    loaded = load("wan2.2-pair", steps=4)
    if data == "teacher":
        drawn = list(itertools.islice(loaded.trajectories(loaded.transformer, batch_size=2, seed=0), 160))
    else:
        generator = torch.Generator().manual_seed(0)
        empty = torch.zeros(2, 4, 2, 4, 4), torch.zeros(2, 8, 16)
        drawn = [loaded.noisy_batch(*empty, generator) for _ in range(160)]
    ordered = list(same_side(iter(drawn), loaded.transformer, 1))
    sides = [float(batch.inputs["timestep"][0]) >= 800 for batch in ordered]
    assert len(set(sides)) == 2 and len(drawn) - len(ordered) <= 2 * (IN_A_ROW - 1)
    assert len({id(batch) for batch in ordered}) == len(ordered)
    for processes in (2, 4, 8, 16):
        assert all(
            len(set(sides[start : start + processes])) == 1 for start in range(0, len(sides), processes)
        )
        again = same_side(iter(drawn), loaded.transformer, processes)
        assert all(one is other for one, other in zip(again, ordered, strict=True))
    three = [float(b.inputs["timestep"][0]) >= 800 for b in same_side(iter(drawn), loaded.transformer, 3)]
    assert three and all(len(set(three[start : start + 3])) == 1 for start in range(0, len(three), 3))
    assert list(same_side(iter(drawn), loaded.transformer.high, 3)) == drawn


def test_experts_share_the_steps_by_the_timestep() -> None:
    class Says(nn.Module):
        def __init__(self, value: float) -> None:
            super().__init__()
            self.value = nn.Parameter(torch.tensor(value))

        def forward(self, hidden_states: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
            return hidden_states * self.value

    pair = TwoExperts(Says(1.0), Says(2.0), 875.0)
    x = torch.ones(2)
    assert pair(hidden_states=x, timestep=torch.tensor([875.0, 999.0])).tolist() == [1, 1]
    assert pair(hidden_states=x, timestep=torch.tensor([874.9, 0.0])).tolist() == [2, 2]
    with pytest.raises(ValueError, match="both sides of 875"):
        pair(hidden_states=x, timestep=torch.tensor([900.0, 100.0]))


def test_clips_follow_the_true_timestep(load: Load) -> None:
    """What the quantized model is told at each step is the sampler's time, with and without caption."""
    from qvgen.api import quantize_
    from qvgen.config import QuantConfig

    loaded = load("wan2.2-pair", steps=4)
    model = quantize_(
        copy.deepcopy(loaded.transformer),
        QuantConfig(w_bits=4, a_bits=4, learn_clip=True, clip_buckets=50),
        (),
    ).eval()
    seen: list[int] = []
    model.register_forward_hook(lambda module, args, output: seen.append(int(module.clip_context.bucket[0])))
    loaded.transformer = model
    loaded.generate(["a goat"], [0])
    times = loaded.pipeline.scheduler.timesteps.tolist()
    assert seen == [min(math.floor(t * 50 / 1000), 49) for t in times for _ in range(2)]


def test_the_teachers_own_steps_are_its_answers(load: Load) -> None:
    for kind in ("cogvideox1.5", "wan2.2-pair"):
        loaded = load(kind)
        drawn = loaded.trajectories(loaded.transformer, batch_size=4, seed=3)
        batches = [next(drawn) for _ in range(3)]
        times = [float(batch.inputs["timestep"][0]) for batch in batches]
        assert times[0] > times[1] and times[2] == times[0]  # two steps, then the next captions
        for batch in batches:
            assert len(batch.target) == 4
            with torch.no_grad():
                answer = loaded.predict(loaded.transformer, batch)
            torch.testing.assert_close(answer, batch.target, rtol=1e-4, atol=1e-4)
        again = loaded.trajectories(loaded.transformer, batch_size=4, seed=3)
        assert torch.equal(next(again).inputs["hidden_states"], batches[0].inputs["hidden_states"])


def test_without_data_nothing_is_trained(load: Load) -> None:
    with pytest.raises(ValueError, match="nothing to train on: give --data DIR"):
        next(load("wan2.1", data=None).batches(batch_size=1, seed=0))


@pytest.mark.parametrize(
    ("kind", "settings", "line"),
    [
        ("wan2.1", {"height": 24}, "height 24: model wan needs a multiple of 16"),
        ("wan2.1", {"frames": 6}, "frames 6: model wan makes a multiple of 4, plus one"),
        ("cogvideox-2b", {"frames": 5}, "frames 5: model cogvideox makes a multiple of 8, plus one"),
        ("wan2.1", {"stepps": 3}, "unknown generation setting 'stepps'; did you mean 'steps'"),
        ("wan2.1", {"steps": "3"}, "--generation steps='3': expected int"),
        ("wan2.1", {"steps": 0}, "expected a whole number from 1"),
        ("wan2.1", {"attention": "fast"}, "expected one of sdpa, cudnn"),
        ("wan2.1", {"tiled_decode": False}, "follows from --memory"),
        ("wan2.1", {"scheduler": "DDIM"}, "this model samples with UniPC"),
    ],
)
def test_settings_that_do_not_fit(kind: str, settings: dict[str, Any], line: str, load: Load) -> None:
    with pytest.raises(UserError) as caught:
        load(kind, **settings)
    assert line in str(caught.value)


def test_settings_go_with_the_protocol() -> None:
    settings = Wan22Pair(ModelOptions(protocol="mlperf-t2v")).settings
    assert (settings.steps, settings.guidance, settings.guidance_2, settings.fixed_noise) == (
        20,
        4.0,
        3.0,
        42,
    )
    assert (settings.height, settings.width, settings.frames, settings.fps) == (720, 1280, 81, 16)
    assert Wan22Pair(ModelOptions(protocol="vbench")).settings.fixed_noise is None
    assert Wan22Pair(ModelOptions(memory="resident")).settings.tiled_decode is False
    changed = Wan22Pair(ModelOptions(generation={"steps": 7, "guidance": 3})).settings
    assert (changed.steps, changed.guidance) == (7, 3.0)


def test_the_folders_scheduler_gets_the_settings(load: Load) -> None:
    config = load("wan2.1", shift=5.0).pipeline.scheduler.config
    assert (config.flow_shift, config.use_flow_sigmas) == (5.0, True)
    assert load("cogvideox-2b").pipeline.scheduler.config.timestep_spacing == "trailing"


def test_captions_are_of_no_protocol() -> None:
    drawn = [text for _, text in zip(range(2000), captions(1), strict=False)]
    assert len(set(drawn)) > 1500
    assert not {text.lower() for text in drawn} & {p.text.lower() for p in VBenchProtocol().prompts()}
    assert drawn[:5] == [text for _, text in zip(range(5), captions(1), strict=False)]
    assert drawn[:5] != [text for _, text in zip(range(5), captions(2), strict=False)]


def test_architectures_have_the_published_sizes() -> None:
    """Full size on the meta device: parameters and linears of each spec, and what papers count."""
    import diffusers

    published = {
        "cogvideox-2b": 1.69e9, "cogvideox1.5-5b": 5.57e9, "wan2.1-1.3b": 1.42e9, "wan2.1-14b": 14.3e9,
        "wan2.2-5b": 5.0e9, "wan2.2-a14b": 14.3e9,
    }  # fmt: skip
    registry = Registry()
    for name, size in published.items():
        spec = registry.get("models", name).spec
        with torch.device("meta"):
            module = getattr(diffusers, spec.transformer)(**spec.shape.config)
        assert sum(p.numel() for p in module.parameters()) == spec.shape.parameters
        assert sum(isinstance(part, nn.Linear) for part in module.modules()) == spec.shape.linears
        assert spec.shape.parameters == pytest.approx(size, rel=0.01)
        json.dumps(spec.shape.config)


@pytest.mark.parametrize("kind", ["cogvideox1.5", "wan2.1", "wan2.2-pair"])
def test_in_bfloat16_as_on_a_gpu(kind: str, load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    """The number formats of CUDA, on a CPU: sampling, a finished model in it, a training step."""
    from baselines.rtn import RTN
    from qvgen.method import QVGen
    from qvgen.training.recipe import TrainRecipe

    exact = load(kind).generate(["a goat"], [0]).astype(int)
    monkeypatch.setattr("evalharness.models.video.pipeline._working_dtype", lambda device: torch.bfloat16)
    loaded = load(kind)
    pristine = loaded.transformer
    assert pristine.dtype == torch.bfloat16
    wan = "wan" in kind
    assert loaded.pipeline.vae.dtype == (torch.float32 if wan else torch.bfloat16)
    low = loaded.generate(["a goat"], [0]).astype(int)
    assert np.abs(low - exact).mean() < 12
    with torch.no_grad():
        assert torch.isfinite(pristine(**loaded.step_inputs())[0]).all()

    class Context:
        seed, device, skip_layers = 0, torch.device("cpu"), ()
        batches = staticmethod(lambda size: loaded.batches(batch_size=size, seed=0))
        predict = staticmethod(loaded.predict)
        log = staticmethod(lambda record: None)
        track = staticmethod(lambda steps, what: iter(steps))

        @staticmethod
        def teacher() -> nn.Module:
            return copy.deepcopy(pristine).eval().requires_grad_(False)

    def dtypes(model: nn.Module) -> dict[str, torch.dtype]:
        return {name: tensor.dtype for name, tensor in (*model.named_parameters(), *model.named_buffers())}

    wanted = dtypes(pristine)  # of Wan some are float32, the first parameter too
    assert (torch.float32 in wanted.values()) == wan
    recipe = TrainRecipe(steps=6, batch_size=2, precision="bf16", gradient_checkpointing=True)
    for method in (RTN(w_bits=8, a_bits=8), QVGen(w_bits=8, a_bits=8, rank=2, recipe=recipe)):
        loaded.transformer = method.apply(copy.deepcopy(pristine), Context())  # type: ignore[arg-type]
        kinds = dtypes(loaded.transformer)
        assert {name: kinds[name] for name in wanted if name in kinds} == wanted, method.name
        video = loaded.generate(["a goat"], [0]).astype(int)
        assert np.abs(video - low).mean() < 12
        loaded.transformer = pristine
