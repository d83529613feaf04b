"""A checkpoint in the released layout, written here from the layout's description, read strictly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from qvgen.api import frozen_layers
from qvgen.checkpoint import load_official, load_quantized, save_quantized
from qvgen.linear import FrozenQuantLinear
from qvgen.official.arithmetic import quantize_activation, quantize_weight
from qvgen.official.config import OfficialConfig
from qvgen.official.linear import OfficialQuantLinear, restart_clip_counters_

WEIGHTS = "diffusion_pytorch_model.safetensors"
PLAIN = "proj_out"  # stays unquantized in most of these files
LAYER = "transformer_blocks.0.attn1.to_q"
NO_BIAS: dict[str, Any] = {"attention_bias": False}


def tiny(**options: Any) -> nn.Module:
    from diffusers import CogVideoXTransformer3DModel

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: nn.Module = CogVideoXTransformer3DModel(
            num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, num_layers=1,
            time_embed_dim=16, text_embed_dim=24, sample_width=6, sample_height=6, sample_frames=5,
            patch_size=2, max_text_seq_length=4, temporal_compression_ratio=4, **options,
        )  # fmt: skip
        return model.eval()


def released_tensors(
    model: nn.Module, skip: tuple[str, ...] = (PLAIN,), *, phi: int = 0, adapters: bool = False
) -> dict[str, Tensor]:
    """Section "layout" of the description, key by key."""
    g = torch.Generator().manual_seed(1)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g)

    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear) or name in skip:
            continue
        weight = tensors.pop(f"{name}.weight")
        tensors[f"{name}.w"] = weight
        if module.bias is not None:
            tensors[f"{name}.b"] = tensors.pop(f"{name}.bias")
        span = weight.amax(1, keepdim=True) - weight.amin(1, keepdim=True)
        tensors[f"{name}.wquantizer.scale"] = span * 0.85 / 15
        tensors[f"{name}.wquantizer.zero_point"] = 7.5 + 0.3 * random(weight.shape[0], 1)
        for side in ("upper", "lower"):
            tensors[f"{name}.aquantizer.{side}"] = 2.9 + 0.2 * random(50)
        if phi:
            rank = min(phi, *weight.shape)
            tensors[f"{name}.wquantizer.L"] = 0.1 * random(weight.shape[0], rank)
            tensors[f"{name}.wquantizer.R"] = 0.1 * random(rank, weight.shape[1])
        if adapters:
            tensors[f"{name}.loraA.weight"] = 0.05 * random(64, weight.shape[1])
            tensors[f"{name}.loraB.weight"] = 0.05 * random(weight.shape[0], 64)
    return {name: tensor.bfloat16().contiguous() for name, tensor in tensors.items()}


def write(folder: Path, tensors: dict[str, Tensor], model: nn.Module) -> Path:
    model.save_config(folder)  # type: ignore[operator]
    save_file(tensors, folder / WEIGHTS)
    return folder


@pytest.fixture
def released(tmp_path: Path) -> Path:
    return write(tmp_path, released_tensors(tiny()), tiny())


def inputs(dtype: torch.dtype) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(2)
    return {
        "hidden_states": torch.randn(2, 2, 4, 6, 6, generator=g).to(dtype),
        "encoder_hidden_states": torch.randn(2, 4, 24, generator=g).to(dtype),
        "timestep": torch.tensor([999, 999]),
    }


def run(model: nn.Module) -> Tensor:
    with torch.no_grad():
        dtype = next(p for n, p in model.named_parameters() if n.startswith("patch_embed")).dtype
        out: Tensor = model(**inputs(dtype)).sample
    return out.float()


def by_hand(tensors: dict[str, Tensor], zero_inside: bool = True) -> nn.Module:
    """The plain model whose linears are overridden by functions of the file's tensors."""
    model = tiny().to(torch.bfloat16)
    state = {n: t for n, t in tensors.items() if n in model.state_dict()}
    model.load_state_dict(state, strict=False)
    for name, module in model.named_modules():
        if f"{name}.w" not in tensors:
            continue
        t = {
            key.removeprefix(f"{name}."): value
            for key, value in tensors.items()
            if key.startswith(f"{name}.")
        }

        def forward(x: Tensor, t: dict[str, Tensor] = t) -> Tensor:
            weight = quantize_weight(
                t["w"], t["wquantizer.scale"], t["wquantizer.zero_point"], 15,
                zero_inside=zero_inside, grad_scaling=True,
            )  # fmt: skip
            x = quantize_activation(x, t["aquantizer.lower"][-1], t["aquantizer.upper"][-1], 15, 0.95)
            return nn.functional.linear(x, weight, t.get("b"))

        module.forward = forward
    return model


def whole_zero_points(folder: Path) -> None:
    """As LSQ has them; those of the fixture are LSQ+'s, real-valued."""
    file = load_file(folder / WEIGHTS)
    rounded = {n: t.round() if n.endswith(".zero_point") else t for n, t in file.items()}
    write(folder, rounded, tiny())


@pytest.mark.parametrize("weights", ["lsq+", "lsq"])
def test_official_mode_is_the_released_model(weights: Any, released: Path) -> None:
    if weights == "lsq":
        whole_zero_points(released)
    model = load_official(released, OfficialConfig(weights=weights))
    layers = {n for n, m in model.named_modules() if isinstance(m, OfficialQuantLinear)}
    assert layers == {n for n, m in tiny().named_modules() if isinstance(m, nn.Linear)} - {PLAIN}
    file = load_file(released / WEIGHTS)
    state = model.state_dict()
    assert state.keys() == file.keys()
    for name, tensor in file.items():
        assert torch.equal(state[name], tensor), name
    assert torch.equal(run(model), run(by_hand(file, zero_inside=weights == "lsq+")))
    assert not model.training and not any(p.requires_grad for p in model.parameters())


def test_counter_gives_each_call_its_clip(released: Path) -> None:
    file = load_file(released / WEIGHTS)
    for name, tensor in file.items():
        if ".aquantizer." in name:
            tensor[:] = torch.linspace(-1, 3, 50)
    write(released, file, tiny())
    last = load_official(released, OfficialConfig())
    counted = load_official(released, OfficialConfig(clip_choice="counter"))
    first = run(counted)
    assert torch.equal(first, run(last))  # both entry 49
    second = run(counted)
    assert not torch.equal(second, first)
    restart_clip_counters_(counted)
    assert torch.equal(run(counted), first) and torch.equal(run(counted), second)
    by_time = load_official(released, OfficialConfig(clip_choice="timestep"))
    assert torch.equal(run(by_time), first)  # timestep 999 mod 50 = 49


def test_exact_mode_has_the_same_numbers_in_our_layers(released: Path, tmp_path: Path) -> None:
    file = {name: tensor.float() for name, tensor in load_file(released / WEIGHTS).items()}
    model = load_official(released, OfficialConfig(mode="exact"))
    layer = model.get_submodule(LAYER)
    assert isinstance(layer, FrozenQuantLinear)
    w, s, z = (file[f"{LAYER}.{key}"] for key in ("w", "wquantizer.scale", "wquantizer.zero_point"))
    codes = torch.clamp(torch.round(w / s + z), 0, 15)
    assert torch.equal(layer.codes.float(), codes)
    assert torch.equal(layer.scale, s) and torch.equal(layer.zero_point, z)
    assert torch.equal(layer.weight, (codes - z) * s)
    for side in ("lower", "upper"):
        ratio = 0.95 / (1 + torch.exp(-file[f"{LAYER}.aquantizer.{side}"].double().mean()))
        assert getattr(layer, side).item() == pytest.approx(ratio.item(), rel=1e-6)
    assert type(model.get_submodule(PLAIN)) is nn.Linear
    assert torch.equal(model.get_parameter(f"{PLAIN}.weight"), file[f"{PLAIN}.weight"])
    # close to the official arithmetic where no row is of one sign, not equal to it
    official = run(load_official(released, OfficialConfig()))
    assert 0 < (run(model) - official).norm() < 0.5 * official.norm()
    # and an ordinary model of this library from here on
    folder = tmp_path / "ours"
    folder.mkdir()
    save_quantized(model, folder, {"method": "qvgen"})
    assert torch.equal(run(load_quantized(tiny(), folder, {"w_bits": 4})), run(model))


def test_layers_without_bias(tmp_path: Path) -> None:
    model = tiny(**NO_BIAS)
    write(tmp_path, released_tensors(model), model)
    layer = load_official(tmp_path, OfficialConfig()).get_submodule(LAYER)
    assert isinstance(layer, OfficialQuantLinear) and layer.b is None


def test_adapters_are_merged_in_the_dtype_of_the_file(tmp_path: Path) -> None:
    tensors = released_tensors(tiny(), adapters=True)
    write(tmp_path, tensors, tiny())
    state = load_official(tmp_path, OfficialConfig()).state_dict()
    assert not any("lora" in name for name in state)
    up, down = tensors[f"{LAYER}.loraB.weight"], tensors[f"{LAYER}.loraA.weight"]
    product = (up.float() @ down.float()).bfloat16()  # alpha = rank: factor 1
    merged = (product.float() + tensors[f"{LAYER}.w"].float()).bfloat16()
    torch.testing.assert_close(state[f"{LAYER}.w"], merged, rtol=2e-2, atol=1e-3)
    assert not torch.equal(state[f"{LAYER}.w"], tensors[f"{LAYER}.w"])


def message(folder: Path, **options: Any) -> str:
    with pytest.raises(ValueError) as caught:
        load_official(folder, OfficialConfig(**options))
    return str(caught.value)


def test_adapters_must_be_whole(tmp_path: Path) -> None:
    tensors = released_tensors(tiny(), adapters=True)
    broken = {n: t for n, t in tensors.items() if n != f"{LAYER}.loraB.weight"}
    assert f"has adapters but lacks {LAYER}.loraB.weight" in message(write(tmp_path, broken, tiny()))
    broken = {n: t for n, t in tensors.items() if not n.startswith(f"{LAYER}.lora")}
    assert f"has adapters but lacks {LAYER}.loraA.weight" in message(write(tmp_path, broken, tiny()))
    broken = {**tensors, f"{LAYER}.loraB.weight": torch.zeros(32, 63)}
    assert f"{LAYER}.loraB.weight (32, 63) do not fit" in message(write(tmp_path, broken, tiny()))
    broken = {**tensors, f"{PLAIN}.loraA.weight": torch.zeros(64, 32)}
    assert f"lacks {PLAIN}.w" in message(write(tmp_path, broken, tiny()))


def test_phi_needs_its_gamma(tmp_path: Path) -> None:
    write(tmp_path, released_tensors(tiny(), phi=8), tiny())
    text = message(tmp_path)
    assert "wquantizer.L: saved while Phi was at work" in text and "give gamma, 8 numbers" in text
    gamma = (1.0,) * 4 + (0.5,) * 4
    assert "gamma has 3 numbers; Phi has 8 columns" in message(tmp_path, gamma=(1.0, 1.0, 0.5))
    assert "mode 'exact' needs gamma of zeros" in message(tmp_path, gamma=gamma, mode="exact")
    layer = load_official(tmp_path, OfficialConfig(gamma=gamma)).get_submodule(LAYER)
    assert isinstance(layer, OfficialQuantLinear)
    quantizer = layer.wquantizer
    without = quantize_weight(
        layer.w, quantizer.scale, quantizer.zero_point, 15, zero_inside=True, grad_scaling=True
    )
    phi = (quantizer.L * torch.tensor(gamma).bfloat16()) @ quantizer.R
    assert torch.equal(quantizer(layer.w), without + phi)
    gone = load_official(tmp_path, OfficialConfig(gamma=(0.0,) * 8, mode="exact"))
    assert len(dict(frozen_layers(gone))) > 5
    file = load_file(tmp_path / WEIGHTS)
    write(tmp_path, {n: t for n, t in file.items() if not n.endswith((".L", ".R"))}, tiny())
    assert "holds no Phi" in message(tmp_path, gamma=gamma)


@pytest.mark.parametrize(
    "key",
    [f"{LAYER}.w", f"{LAYER}.b", f"{LAYER}.wquantizer.zero_point", f"{LAYER}.aquantizer.upper",
     f"{PLAIN}.weight", "norm_final.weight"],
)  # fmt: skip
def test_missing_surplus_and_misshaped_keys_are_named(key: str, released: Path) -> None:
    tensors = load_file(released / WEIGHTS)
    write(released, {n: t for n, t in tensors.items() if n != key}, tiny())
    assert f"lacks {key} (1 missing, 0 surplus" in message(released)
    write(released, {**tensors, f"{key}x": torch.zeros(2)}, tiny())
    assert f"has the surplus key {key}x (0 missing, 1 surplus" in message(released)
    write(released, {**tensors, key: torch.zeros(3, 7, 2)}, tiny())
    assert f"{key} is (3, 7, 2), the model needs" in message(released)


@pytest.mark.parametrize("mode", ["official", "exact"])
@pytest.mark.parametrize(
    ("part", "bad", "reason"),
    [
        ("w", float("nan"), "holds NaN or infinity"),
        ("b", float("inf"), "holds NaN or infinity"),
        ("wquantizer.zero_point", float("nan"), "holds NaN or infinity"),
        ("aquantizer.upper", float("nan"), "holds NaN or infinity"),
        ("wquantizer.scale", float("nan"), "holds a number that is not positive and finite"),
        ("wquantizer.scale", -0.01, "holds a number that is not positive and finite"),
        ("wquantizer.scale", 0.0, "holds a number that is not positive and finite"),
        ("w", torch.int8, "holds int8; the model needs floating-point numbers"),
        ("b", torch.bool, "holds bool; the model needs floating-point numbers"),
    ],
)
def test_numbers_that_make_no_sense_are_named(
    part: str, bad: Any, reason: str, mode: str, released: Path
) -> None:
    tensors = load_file(released / WEIGHTS)
    key = f"{LAYER}.{part}"
    if isinstance(bad, torch.dtype):
        tensors[key] = tensors[key].to(bad)
    else:
        tensors[key].view(-1)[0] = bad
    write(released, tensors, tiny())
    text = message(released, mode=mode)
    assert key in text and reason in text and str(released / WEIGHTS) in text


@pytest.mark.parametrize("mode", ["official", "exact"])
def test_zero_points_of_lsq_are_codes(mode: Any, released: Path) -> None:
    assert "wquantizer.zero_point: holds a fraction" in message(released, weights="lsq", mode=mode)
    whole_zero_points(released)
    load_official(released, OfficialConfig(weights="lsq", mode=mode))
    tensors = load_file(released / WEIGHTS)
    tensors[f"{LAYER}.wquantizer.zero_point"][0] = 16
    write(released, tensors, tiny())
    text = message(released, weights="lsq", mode=mode)
    assert f"{LAYER}.wquantizer.zero_point: holds a number outside of 0 to 15" in text
    load_official(released, OfficialConfig(weights="lsq+", mode=mode))  # LSQ+ does not clamp it


def test_adapters_are_floating_point(tmp_path: Path) -> None:
    tensors = released_tensors(tiny(), adapters=True)
    key = f"{LAYER}.loraB.weight"
    write(tmp_path, {**tensors, key: tensors[key].to(torch.int8)}, tiny())
    assert f"{key} holds int8" in message(tmp_path)
    tensors[key][0, 0] = float("nan")
    write(tmp_path, tensors, tiny())
    assert f"{key}: holds NaN or infinity" in message(tmp_path)


def test_odd_layers_are_named(released: Path) -> None:
    tensors = load_file(released / WEIGHTS)
    # the scale marks a layer as quantized: without it, what is missing is not its plain weight
    write(released, {n: t for n, t in tensors.items() if n != f"{LAYER}.wquantizer.scale"}, tiny())
    assert f"has {LAYER}.aquantizer.lower but lacks {LAYER}.wquantizer.scale" in message(released)
    write(released, {**tensors, "nowhere.wquantizer.scale": torch.ones(3, 1)}, tiny())
    assert "surplus key nowhere.wquantizer.scale: 'nowhere' is no linear" in message(released)
    write(released, {**tensors, f"{LAYER}.wquantizer.L": torch.zeros(32, 4)}, tiny())
    assert f"lacks {LAYER}.wquantizer.R" in message(released)
    write(released, {**tensors, f"{LAYER}.wquantizer.scale": torch.zeros(32, 1)}, tiny())
    assert f"{LAYER}.wquantizer.scale: holds a number that is not positive" in message(released, mode="exact")
    assert "aquantizer.upper is (50,), the model needs (20,)" in message(
        write(released, tensors, tiny()), clip_entries=20
    )


def test_pickles_and_other_files_are_refused(released: Path) -> None:
    for name in ("model.bin", "model.pt", "model.pth", "model.ckpt"):
        assert "a pickle can run any code when it is read and is refused" in message(released / name)
    assert "give the one with config.json and diffusion_pytorch_model.safetensors" in message(
        released / WEIGHTS
    )
    (released / WEIGHTS).rename(released / "other")
    assert f"lacks {WEIGHTS}" in message(released)
    (released / "diffusion_pytorch_model.bin").write_bytes(b"")
    assert "(diffusion_pytorch_model.bin is a pickle and is not read)" in message(released)
    (released / WEIGHTS).write_bytes(b"no tensors here")
    assert "not valid safetensors" in message(released)
    (released / WEIGHTS).unlink()
    (released / "other").rename(released / WEIGHTS)
    (released / "config.json").write_text(json.dumps({"_class_name": "UNet2DModel"}))
    assert "_class_name is 'UNet2DModel'; allowed: CogVideoXTransformer3DModel, Wan" in message(released)
    for text in ("{", "[" * 100_000):
        (released / "config.json").write_text(text)
        assert "config.json: not valid JSON" in message(released)


@pytest.mark.parametrize("wrong", [{"num_layers": "two"}, {"num_attention_heads": -1}, {"patch_size": None}])
def test_a_description_of_no_model_is_an_error(wrong: dict[str, Any], released: Path) -> None:
    description = json.loads((released / "config.json").read_text())
    (released / "config.json").write_text(json.dumps({**description, **wrong}))
    assert "config.json: describes no CogVideoXTransformer3DModel (" in message(released)


def test_gamma_is_a_list_of_numbers() -> None:
    with pytest.raises(ValueError, match=r"gamma is 1.0; expected a tuple with a number for each column"):
        OfficialConfig(gamma=1.0)  # type: ignore[arg-type]


def test_wan_keeps_its_time_embedder_in_float32(tmp_path: Path) -> None:
    """Loaded as the authors' script loads it: bfloat16, but for what the class keeps."""
    from diffusers import WanTransformer3DModel

    model = WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4,
        text_dim=16, freq_dim=16, ffn_dim=32, num_layers=1, rope_max_seq_len=32,
    ).eval()  # fmt: skip
    write(tmp_path, released_tensors(model, ()), model)
    loaded = load_official(tmp_path, OfficialConfig())
    quantized = {n: m for n, m in loaded.named_modules() if isinstance(m, OfficialQuantLinear)}
    assert len(quantized) == sum(isinstance(m, nn.Linear) for m in model.modules())
    dtypes = {n: m.w.dtype for n, m in quantized.items()}
    assert {n for n, d in dtypes.items() if d == torch.float32} == {n for n in dtypes if "time_embedder" in n}
    g = torch.Generator().manual_seed(0)
    batch = {
        "hidden_states": torch.randn(1, 4, 2, 4, 4, generator=g).bfloat16(),
        "encoder_hidden_states": torch.randn(1, 5, 16, generator=g).bfloat16(),
        "timestep": torch.tensor([500]),
    }
    with torch.no_grad():
        out = loaded(**batch).sample
        exact = load_official(tmp_path, OfficialConfig(mode="exact"))
        ours = exact(**{k: v.float() if v.is_floating_point() else v for k, v in batch.items()}).sample
    assert out.dtype == torch.bfloat16 and bool(out.isfinite().all())
    assert (ours - out.float()).norm() < ours.norm()
