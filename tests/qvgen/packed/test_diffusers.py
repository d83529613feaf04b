"""Packed models through diffusers' own save_pretrained and from_pretrained."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import CogVideoXTransformer3DModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from qvgen.api import convert_, finish_, quantize_
from qvgen.config import QuantConfig, QVGenConfig
from qvgen.integrations.diffusers import QVGenQuantizationConfig, attach_, register
from qvgen.integrations.loading import load_packed
from qvgen.packed import backends
from qvgen.packed.backends import Backend
from qvgen.packed.convert import pack_, packed_layers
from qvgen.transformed import Transform, TransformedQuantLinear, frozen_from_codes
from tests.qvgen.packed.models import wan
from tests.qvgen.test_cogvideox import tiny

WEIGHTS = "diffusion_pytorch_model.safetensors"


def inputs() -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(0)
    return {
        "hidden_states": torch.randn(2, 2, 4, 6, 6, generator=g),
        "encoder_hidden_states": torch.randn(2, 4, 24, generator=g),
        "timestep": torch.tensor([20, 900]),
    }


def output(model: nn.Module, dtype: torch.dtype = torch.float32) -> Tensor:
    values = {k: v.to(dtype) if v.is_floating_point() else v for k, v in inputs().items()}
    with torch.no_grad():
        out: Tensor = model(**values).sample
    return out


def finished(**options: Any) -> nn.Module:
    values: dict[str, Any] = {"w_bits": 3, "a_bits": 4, "learn_clip": True, "clip_buckets": 4, **options}
    return convert_(quantize_(tiny(), QuantConfig(**values), ("proj_out",)))


def transformed() -> nn.Module:
    """Three forms of layers: plain, rotated and scaled, with a branch and other bits."""
    model = tiny()
    generator = torch.Generator().manual_seed(1)
    linears = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear) and n != "proj_out"]
    for number, (name, linear) in enumerate(linears):
        config = QuantConfig(w_bits=4 if number % 3 else 8, a_bits=4)
        shape = (linear.out_features, linear.in_features)
        codes = torch.randint(0, 2**config.w_bits, shape, generator=generator)
        scale = torch.full((shape[0], 1), 0.2 / 2**config.w_bits)
        layer = frozen_from_codes(
            linear, config, codes, scale, torch.full_like(scale, 2 ** (config.w_bits - 1))
        )
        kinds = (None, Transform(scaled=True, rotated=True), Transform(scaled=True, rank=2, shift=0.25))
        kind = kinds[number % 3]
        if kind is None:
            model.set_submodule(name, layer)
            continue
        wrapped = TransformedQuantLinear(layer, kind)
        for part in (wrapped.input_scale, wrapped.down, wrapped.up):
            if part is not None:
                part.uniform_(0.5, 1.5, generator=generator)
        model.set_submodule(name, wrapped)
    return finish_(model, QuantConfig(w_bits=4, a_bits=4))


@pytest.mark.parametrize("make", [finished, transformed])
def test_round_trip_with_no_argument(make: Callable[[], nn.Module], tmp_path: Path) -> None:
    fake = make()
    live = attach_(copy.deepcopy(fake))
    live.save_pretrained(tmp_path)  # type: ignore[operator]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", WEIGHTS]
    register()
    loaded = CogVideoXTransformer3DModel.from_pretrained(tmp_path)
    assert torch.equal(output(live), output(loaded))
    fields = {n: layer.config for n, layer in packed_layers(live)}
    assert fields == {n: layer.config for n, layer in packed_layers(loaded)} and fields
    assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())
    loaded.save_pretrained(tmp_path / "again")
    first, second = (load_file(folder / WEIGHTS) for folder in (tmp_path, tmp_path / "again"))
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    again = CogVideoXTransformer3DModel.from_pretrained(tmp_path / "again")
    assert torch.equal(output(live), output(again))


def test_bfloat16_leaves_scales_exact(tmp_path: Path) -> None:
    attach_(finished()).save_pretrained(tmp_path)  # type: ignore[operator]
    loaded = CogVideoXTransformer3DModel.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    stored = load_file(tmp_path / WEIGHTS)
    layers = dict(packed_layers(loaded))
    for name, layer in layers.items():
        for part in ("codes", "scale", "zero_point", "lower", "upper"):
            assert torch.equal(layer.get_buffer(part), stored[f"{name}.{part}"])
        assert layer.bias is None or layer.bias.dtype == torch.bfloat16
    assert torch.isfinite(output(loaded, torch.bfloat16)).all()


def test_quantizes_a_full_precision_folder(tmp_path: Path) -> None:
    register()
    tiny().save_pretrained(tmp_path / "full")  # type: ignore[operator]
    config = QVGenQuantizationConfig(w_bits=4, a_bits=8, modules_to_not_convert=["proj_out"])
    model = CogVideoXTransformer3DModel.from_pretrained(tmp_path / "full", quantization_config=config)
    assert {layer.config.w_bits for _, layer in packed_layers(model)} == {4}
    assert isinstance(model.proj_out, nn.Linear)
    wanted = output(tiny())
    assert (output(model) - wanted).square().sum() / wanted.square().sum() < 0.05
    model.save_pretrained(tmp_path / "packed")
    again = CogVideoXTransformer3DModel.from_pretrained(tmp_path / "packed")
    assert torch.equal(output(model), output(again))
    sizes = [(tmp_path / place / WEIGHTS).stat().st_size for place in ("full", "packed")]
    assert sizes[1] < sizes[0] / 2  # 4 of 32 bits, but scales of rows of 16 weights


@pytest.mark.parametrize(
    "config", [QuantConfig(w_bits=4, a_bits=8), QVGenConfig(quant=QuantConfig(w_bits=4, a_bits=8), rank=2)]
)
def test_configs_of_the_library_are_taken_as_they_are(
    tmp_path: Path, config: QuantConfig | QVGenConfig
) -> None:
    """Phi is of training: on loading, its quantizers alone count."""
    register()
    tiny().save_pretrained(tmp_path / "full")  # type: ignore[operator]
    wanted, model = (
        CogVideoXTransformer3DModel.from_pretrained(tmp_path / "full", quantization_config=each)
        for each in (QVGenQuantizationConfig(w_bits=4, a_bits=8), config)
    )
    assert torch.equal(output(model), output(wanted))
    model.save_pretrained(tmp_path / "packed")
    again = CogVideoXTransformer3DModel.from_pretrained(tmp_path / "packed")
    assert torch.equal(output(model), output(again))


def test_a_pipelines_mapping_takes_the_config_of_diffusers_form(tmp_path: Path) -> None:
    """Diffusers looks at the class of each entry before anything is asked of us: ``QuantConfig`` is none."""
    register()
    absent = dict.fromkeys(("tokenizer", "text_encoder", "vae", "transformer_2"))
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    whole = diffusers.WanPipeline(scheduler=scheduler, transformer=wan(num_layers=1), **absent)
    whole.save_pretrained(tmp_path)
    config = QuantConfig(w_bits=4, a_bits=4)
    with pytest.raises(ValueError, match=r"module_name=transformer .*QVGenQuantizationConfig"):
        diffusers.PipelineQuantizationConfig(quant_mapping={"transformer": config})
    mapping = {"transformer": QVGenQuantizationConfig(config)}
    loaded = diffusers.WanPipeline.from_pretrained(
        tmp_path, quantization_config=diffusers.PipelineQuantizationConfig(quant_mapping=mapping), **absent
    )
    alone = diffusers.WanTransformer3DModel.from_pretrained(
        tmp_path / "transformer", quantization_config=config
    )
    ours, theirs = (dict(packed_layers(model)) for model in (loaded.transformer, alone))
    assert list(ours) == list(theirs) and len(ours) > 5
    assert all(torch.equal(ours[name].codes, theirs[name].codes) for name in ours)


class Filled(TorchDispatchMode):
    """Remembers the shape of every floating-point tensor that something is computed or copied into.

    Not ``empty`` and views of it: building a skeleton asks for memory that nothing touches.
    """

    untouched = ("aten.empty", "aten.detach", "aten.alias", "aten.view")

    def __init__(self) -> None:
        super().__init__()
        self.shapes: set[tuple[int, ...]] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out) if not str(func).startswith(self.untouched) else ():
            if isinstance(leaf, Tensor) and leaf.device.type != "meta" and leaf.is_floating_point():
                self.shapes.add(tuple(leaf.shape))
        return out


def test_full_precision_weights_are_never_there(tmp_path: Path) -> None:
    attach_(finished()).save_pretrained(tmp_path)  # type: ignore[operator]
    with Filled() as seen:
        loaded = CogVideoXTransformer3DModel.from_pretrained(tmp_path)
    shapes = {(layer.out_features, layer.in_features) for _, layer in packed_layers(loaded)}
    others = {tuple(p.shape) for p in loaded.parameters()} | {(p.numel(),) for p in loaded.parameters()}
    assert shapes and not (shapes - others) & seen.shapes
    with Filled() as seen:  # the same watch sees them where they are
        quantize_(tiny(), QuantConfig(w_bits=4, a_bits=4))
    assert shapes & seen.shapes


def damaged(folder: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    from safetensors import safe_open

    path = folder / WEIGHTS
    with safe_open(path, framework="pt") as opened:
        metadata = opened.metadata()
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata=metadata)


NAME = "transformer_blocks.0.attn1.to_q"


def flip(tensors: dict[str, Tensor]) -> None:
    codes = tensors[f"{NAME}.codes"].clone()
    codes[0, 0] ^= 1
    tensors[f"{NAME}.codes"] = codes


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (flip, rf"{NAME}\.codes was altered or damaged"),
        (
            lambda t: t.update({"norm_final.weight": t["norm_final.weight"] + 1}),
            r"norm_final\.weight was altered",
        ),
        (lambda t: t.pop(f"{NAME}.scale"), rf"lacks {NAME}\.scale \(1 in all\)"),
        (lambda t: t.update({"extra": torch.zeros(1)}), r"has a surplus tensor extra"),
        (
            lambda t: t.update({f"{NAME}.codes": t[f"{NAME}.codes"][:, :4].clone()}),
            rf"{NAME}\.codes is \(32, 4\), the model needs \(32, 12\)",
        ),
    ],
)
def test_damaged_files_are_refused_by_name(
    change: Callable[[dict[str, Tensor]], None], message: str, tmp_path: Path
) -> None:
    attach_(finished()).save_pretrained(tmp_path)  # type: ignore[operator]
    damaged(tmp_path, change)
    with pytest.raises(ValueError, match=message):
        CogVideoXTransformer3DModel.from_pretrained(tmp_path)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("leaf", "change", "message"),
    [
        ("codes", lambda t: t.int(), r"codes is torch\.int32, the model needs torch\.uint8"),
        ("codes", lambda t: t.view(torch.int8), r"codes is torch\.int8, the model needs torch\.uint8"),
        ("scale", lambda t: t.half(), r"scale is torch\.float16, the model needs torch\.float32"),
        ("scale", lambda t: t * torch.inf, "scale has numbers that are not finite"),
    ],
)
def test_what_no_checksum_guards_is_looked_at(
    leaf: str, change: Callable[[Tensor], Tensor], message: str, stream: bool, tmp_path: Path
) -> None:
    """Files that another tool wrote again, without the checksums."""
    attach_(finished()).save_pretrained(tmp_path)  # type: ignore[operator]
    tensors = load_file(tmp_path / WEIGHTS)
    save_file(tensors, tmp_path / WEIGHTS, metadata={"format": "pt"})
    load_packed(tmp_path)
    tensors[f"{NAME}.{leaf}"] = change(tensors[f"{NAME}.{leaf}"])
    save_file(tensors, tmp_path / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=message):
        load_packed(tmp_path) if stream else CogVideoXTransformer3DModel.from_pretrained(tmp_path)


def edit(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = folder / "config.json"
    values = json.loads(path.read_text())
    change(values["quantization_config"])
    path.write_text(json.dumps(values))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(format_version=2), "format 2"),
        (lambda c: c.pop("layers"), "lists no layers"),
        (lambda c: c["layers"].update({"nowhere": [4, 4]}), "'nowhere' of the checkpoint is no linear"),
        (lambda c: c["layers"].update({NAME: [4, 4]}), rf"layer '{NAME}': checkpoint has \[4, 4\]"),
        (lambda c: c["quant"].update(w_bits=11), "w_bits is 11"),
    ],
)
def test_foreign_descriptions_are_refused(
    change: Callable[[dict[str, Any]], None], message: str, tmp_path: Path
) -> None:
    attach_(finished()).save_pretrained(tmp_path)  # type: ignore[operator]
    edit(tmp_path, change)
    with pytest.raises(ValueError, match=message):
        CogVideoXTransformer3DModel.from_pretrained(tmp_path)


@pytest.mark.parametrize("stream", [False, True])
def test_a_folder_for_a_gpu_is_loaded_to_its_host(
    stream: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``from_pretrained`` and then ``.to("cuda")`` is how most load; where there is no GPU it is refused."""

    def load() -> Any:
        return load_packed(tmp_path) if stream else CogVideoXTransformer3DModel.from_pretrained(tmp_path)

    attach_(finished()).save_pretrained(tmp_path)  # type: ignore[operator]
    wanted = output(load())
    edit(tmp_path, lambda c: c.update(backend="triton_int8"))
    monkeypatch.setattr(backends, "_kernels", lambda: None)
    with pytest.raises(ValueError, match="backend triton_int8"):
        load()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    model = load()
    with pytest.raises(ValueError, match="backend triton_int8"):
        output(model)
    for _, layer in packed_layers(model):
        layer.backend = Backend.REFERENCE  # instead of the GPU
    torch.testing.assert_close(output(model), wanted, rtol=1e-3, atol=1e-3)


def test_config_errors_and_round_trip() -> None:
    with pytest.raises(ValueError, match="either quant, or w_bits and a_bits"):
        QVGenQuantizationConfig(w_bits=4)
    with pytest.raises(ValueError, match="backend is 'fast'"):
        QVGenQuantizationConfig(w_bits=4, a_bits=4, backend="fast")
    config = QVGenQuantizationConfig(w_bits=4, a_bits=3, backend="reference", modules_to_not_convert=["x"])
    again = QVGenQuantizationConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert again.to_dict() == config.to_dict() and again.quant == QuantConfig(w_bits=4, a_bits=3)
    with pytest.raises(ValueError, match="no diffusers model"):
        attach_(pack_(convert_(quantize_(nn.Sequential(nn.Linear(4, 4)), QuantConfig(w_bits=4, a_bits=4)))))


def test_pickles_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="safetensors only"):
        attach_(finished()).save_pretrained(tmp_path, safe_serialization=False)  # type: ignore[operator]


@pytest.mark.slow
def test_a_packed_transformer_compiles_in_one_graph() -> None:
    model = attach_(finished(clip_buckets=1))
    wanted = output(model)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        got = compiled(**inputs(), return_dict=False)[0]
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)
