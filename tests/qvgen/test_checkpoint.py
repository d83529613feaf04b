"""Saved and live model are equal bit for bit; anything wrong with a folder is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from qvgen.api import convert_, frozen_layers, quantize_
from qvgen.checkpoint import CONFIG_NAME, WEIGHTS_NAME, load_quantized, save_quantized
from qvgen.config import QuantConfig

META = {"method": "qvgen"}


def converted(model: nn.Module, bits: int = 3, **options: Any) -> nn.Module:
    config = QuantConfig(w_bits=bits, a_bits=bits, learn_clip=True, **options)
    with torch.no_grad():  # pretend training moved the unquantized parts off the bf16 grid
        for parameter in model.parameters():
            parameter.mul_(1.0009765)
    return convert_(quantize_(model, config))


@pytest.fixture
def saved(make_model: Callable[[], nn.Module], tmp_path: Path) -> Path:
    save_quantized(converted(make_model()), tmp_path, META)
    return tmp_path


def rehash(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Rewrite the weights with a checksum that fits, as a buggy writer would."""
    import hashlib

    save_file(tensors, folder / WEIGHTS_NAME)
    header = json.loads((folder / CONFIG_NAME).read_text())
    header["weights_sha256"] = hashlib.sha256((folder / WEIGHTS_NAME).read_bytes()).hexdigest()
    (folder / CONFIG_NAME).write_text(json.dumps(header))


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7, 8])
@pytest.mark.parametrize("options", [{}, {"store_dtype": "float32", "clip_buckets": 7}])
def test_round_trip_is_exact(
    bits: int, options: dict[str, Any], make_model: Callable[[], nn.Module], tmp_path: Path, batch: Any
) -> None:
    live = converted(make_model(), bits, **options)
    save_quantized(live, tmp_path, META)
    loaded = load_quantized(make_model(), tmp_path, {**META, "w_bits": bits, "a_bits": bits})
    state, again = live.state_dict(), loaded.state_dict()
    assert state.keys() == again.keys()
    for name in state:
        assert torch.equal(state[name], again[name]), name
    assert torch.equal(live(**batch.inputs), loaded(**batch.inputs))
    assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())


def test_bytes_on_disk(saved: Path) -> None:
    tensors = load_file(saved / WEIGHTS_NAME)
    assert tensors["first.codes"].numel() == 48 * 16 * 3 // 8
    assert tensors["second.codes"].dtype == torch.uint8
    assert tensors["table"].dtype == torch.bfloat16 and tensors["norm.weight"].dtype == torch.float32
    assert sorted(p.name for p in saved.iterdir()) == [WEIGHTS_NAME, CONFIG_NAME]
    assert "first.weight" not in tensors


def test_saving_again_gives_the_same_bytes(saved: Path, make_model: Callable[[], nn.Module]) -> None:
    before = {p.name: p.read_bytes() for p in saved.iterdir()}
    save_quantized(load_quantized(make_model(), saved, META), saved, META)
    assert {p.name: p.read_bytes() for p in saved.iterdir()} == before


def test_skipped_layers_come_back_plain(make_model: Callable[[], nn.Module], tmp_path: Path) -> None:
    config = QuantConfig(w_bits=3, a_bits=3)
    save_quantized(convert_(quantize_(make_model(), config, ["second"])), tmp_path, META)
    loaded = load_quantized(make_model(), tmp_path, META)
    assert [n for n, _ in frozen_layers(loaded)] == ["first"]
    assert type(loaded.get_submodule("second")) is nn.Linear


def refusal(folder: Path, model: nn.Module, **expect: Any) -> str:
    with pytest.raises(ValueError) as caught:
        load_quantized(model, folder, {**META, **expect})
    return str(caught.value)


def test_foreign_checkpoints_are_refused(saved: Path, make_model: Callable[[], nn.Module]) -> None:
    assert "has w_bits 3, wanted 4" in refusal(saved, make_model(), w_bits=4)
    assert "has method 'qvgen', wanted 'lsq'" in refusal(saved, make_model(), method="lsq")
    other = make_model()
    other.second = nn.Linear(48, 9, bias=False)
    assert "layer 'second': checkpoint has [8, 48], the model [9, 48]" in refusal(saved, other)
    other.second = nn.Identity()
    assert "layer 'second' of the checkpoint is no linear" in refusal(saved, other)
    header = json.loads((saved / CONFIG_NAME).read_text())
    (saved / CONFIG_NAME).write_text(json.dumps({**header, "format_version": 2}))
    assert "format version 2, this program reads 1" in refusal(saved, make_model())
    (saved / CONFIG_NAME).write_text(json.dumps({"model_type": "t5"}))
    assert f"{CONFIG_NAME}: not a checkpoint of this library" in refusal(saved, make_model())


def test_corruption_is_refused(saved: Path, make_model: Callable[[], nn.Module]) -> None:
    weights = saved / WEIGHTS_NAME
    data = weights.read_bytes()
    weights.write_bytes(data[:-5])
    assert f"{WEIGHTS_NAME}: truncated or altered" in refusal(saved, make_model())
    weights.write_bytes(data[:-5] + bytes([data[-5] ^ 1]) + data[-4:])
    assert f"{WEIGHTS_NAME}: truncated or altered" in refusal(saved, make_model())
    weights.unlink()
    assert f"{WEIGHTS_NAME}: cannot be read" in refusal(saved, make_model())
    (saved / CONFIG_NAME).write_text('{"format":')
    assert f"{CONFIG_NAME}: not valid JSON" in refusal(saved, make_model())
    (saved / CONFIG_NAME).write_text('{"format":' * 100_000)
    assert f"{CONFIG_NAME}: not valid JSON" in refusal(saved, make_model())
    (saved / CONFIG_NAME).unlink()
    assert f"{CONFIG_NAME}: cannot be read" in refusal(saved, make_model())


def test_wrong_tensors_are_named(saved: Path, make_model: Callable[[], nn.Module]) -> None:
    good = load_file(saved / WEIGHTS_NAME)
    rehash(saved, {n: t for n, t in good.items() if n != "first.scale"})
    assert "lacks first.scale" in refusal(saved, make_model())
    rehash(saved, {**good, "extra.weight": torch.zeros(2)})
    assert "surplus tensor extra.weight" in refusal(saved, make_model())
    rehash(saved, {**good, "norm.bias": torch.zeros(5)})
    assert "norm.bias is (5,), the model needs (48,)" in refusal(saved, make_model())
    rehash(saved, {**good, "first.codes": good["first.codes"][:-1].clone()})
    assert "first.codes is (287,), the model needs (288,)" in refusal(saved, make_model())


@pytest.mark.parametrize(
    ("name", "bad", "reason"),
    [
        ("first.scale", float("nan"), "holds a number that is not positive and finite"),
        ("first.scale", -0.5, "holds a number that is not positive and finite"),
        ("first.scale", torch.int32, "holds int32; the model needs floating-point numbers"),
        ("second.zero_point", float("inf"), "holds NaN or infinity"),
        ("first.upper", float("nan"), "holds NaN or infinity"),
        ("first.lower", 1.5, "holds a number outside of 0 to 1"),
        ("first.codes", torch.int16, "holds int16; the model needs uint8"),
        ("first.bias", float("nan"), "holds NaN or infinity"),
        ("norm.weight", torch.int64, "holds int64; the model needs floating-point numbers"),
        ("table", float("-inf"), "holds NaN or infinity"),
    ],
)
def test_numbers_that_make_no_sense_are_named(
    name: str, bad: Any, reason: str, saved: Path, make_model: Callable[[], nn.Module]
) -> None:
    tensors = load_file(saved / WEIGHTS_NAME)
    if isinstance(bad, torch.dtype):
        tensors[name] = tensors[name].to(bad)
    else:
        tensors[name].view(-1)[0] = bad
    rehash(saved, tensors)
    text = refusal(saved, make_model())
    assert name in text and reason in text and str(saved / WEIGHTS_NAME) in text


def test_a_mask_of_the_model_may_be_infinite(make_model: Callable[[], nn.Module], tmp_path: Path) -> None:
    def masked() -> nn.Module:
        model = make_model()
        model.register_buffer("mask", torch.full((3,), float("-inf")))
        return model

    save_quantized(converted(masked()), tmp_path, META)
    assert load_quantized(masked(), tmp_path, META).get_buffer("mask").eq(float("-inf")).all()


def test_unconverted_model_is_not_saved(make_model: Callable[[], nn.Module], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="call convert_ first"):
        save_quantized(make_model(), tmp_path, META)
    assert list(tmp_path.iterdir()) == []
