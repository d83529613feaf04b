"""Memory presets: who is on the device when, told by modules that remember where they were sent."""

from __future__ import annotations

import copy
from types import ModuleType

import pytest
import torch
from torch import nn

from evalharness.modeloptions import ModelOptions
from evalharness.models.video import moves, placement
from evalharness.models.video.experts import TwoExperts
from evalharness.models.video.placement import Placement
from qvgen.api import convert_, quantize_
from qvgen.config import QuantConfig
from qvgen.packed.convert import pack_, packed_layers

CUDA = torch.device("cuda")


class Part(nn.Module):
    """Says where it is; nothing really moves, so that no GPU is needed."""

    def __init__(self, name: str, log: list[str]) -> None:
        super().__init__()
        self.name, self.log, self.where = name, log, "cpu"

    def to(self, device: object) -> Part:  # type: ignore[override]
        place = torch.device(str(device)).type
        if place != self.where:
            self.where = place
            self.log.append(f"{self.name}>{place}")
        return self


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What moved; tensors alone, of which these parts have none, count as the whole part."""
    monkeypatch.setattr(placement, "move_", lambda part, device: part.to(device))
    monkeypatch.setattr(placement, "units", lambda pair: pair.children())
    return []


def on_device(*parts: Part) -> set[str]:
    return {part.name for part in parts if part.where == "cuda"}


def test_phases_take_turns(log: list[str]) -> None:
    text, transformer, vae = (Part(name, log) for name in ("text", "transformer", "vae"))
    placement = Placement(CUDA, "phases")
    placement.settle(transformer, text, vae)
    assert on_device(text, transformer, vae) == {"transformer"}
    log.clear()
    with placement.turn(text, transformer):
        assert on_device(text, transformer, vae) == {"text"}
    assert log == ["transformer>cpu", "text>cuda", "text>cpu", "transformer>cuda"]
    with pytest.raises(RuntimeError), placement.turn(vae, transformer):
        raise RuntimeError("out of memory")
    assert on_device(text, transformer, vae) == {"transformer"}, "also after an error"


def test_resident_moves_once(log: list[str]) -> None:
    text, transformer = Part("text", log), Part("transformer", log)
    placement = Placement(CUDA, "resident")
    placement.settle(transformer, text)
    assert on_device(text, transformer) == {"text", "transformer"}
    log.clear()
    with placement.turn(text, transformer), placement.denoising(transformer):
        pass
    assert log == []


def test_blocks_leave_the_transformer_on_the_host(log: list[str]) -> None:
    text, transformer = Part("text", log), Part("transformer", log)
    placement = Placement(CUDA, "blocks")
    placement.settle(transformer, text)
    with placement.turn(text, transformer):
        assert on_device(text, transformer) == {"text"}
    assert on_device(text, transformer) == set()


def test_one_expert_at_a_time(log: list[str]) -> None:
    """Outside of sampling the first rests on the device; while it runs, whoever is called is there alone."""
    high, low, text = (Part(name, log) for name in ("high", "low", "text"))
    pair = TwoExperts(high, low, 800.0)
    placement = Placement(CUDA, "phases")
    placement.settle(pair, text)
    assert on_device(high, low) == {"high"}
    with placement.denoising(pair):
        assert pair.device == CUDA
    assert pair.device is None


def test_the_pair_swaps_when_it_is_called() -> None:
    class Counts(nn.Module):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name
            self.weight = nn.Parameter(torch.zeros(1))

        def forward(self, hidden_states: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
            return hidden_states + self.weight

    pair = TwoExperts(Counts("high"), Counts("low"), 800.0)
    pair.low.to("meta")  # stands for the host: a place from which it must be brought
    pair.device = torch.device("cpu")
    x = torch.ones(1)
    assert pair(hidden_states=x, timestep=torch.tensor([900.0])).device.type == "cpu"
    pair.device = torch.device("meta")
    pair(hidden_states=x.to("meta"), timestep=torch.tensor([100.0]))
    assert next(pair.low.parameters()).device.type == "meta"


def test_a_cpu_moves_nothing(log: list[str]) -> None:
    part = Part("transformer", log)
    for preset in ("phases", "blocks", "resident"):
        placement = Placement(torch.device("cpu"), preset)
        placement.settle(part, part)
        with placement.turn(part, part), placement.denoising(part):
            pass
    assert log == []


def test_blocks_come_one_by_one(load_tiny: nn.Module) -> None:
    """To a device whose tensors are copies: at a call that block alone is there, and what is in no block."""
    load_tiny.blocks.append(copy.deepcopy(load_tiny.blocks[0]))  # type: ignore[operator, union-attr, index]
    rests = {name: (tensor, tensor.data_ptr()) for name, tensor in load_tiny.named_parameters()}
    seen: list[set[str]] = []

    def there() -> set[str]:
        return {name for name, tensor in load_tiny.named_parameters() if tensor.data_ptr() != rests[name][1]}

    inputs = {
        "hidden_states": torch.randn(1, 4, 1, 4, 4),
        "encoder_hidden_states": torch.randn(1, 4, 16),
        "timestep": torch.zeros(1, dtype=torch.long),
    }
    wanted = load_tiny(**inputs).sample
    with placement._blocks_by_turns(load_tiny, torch.device("cpu", 0)):
        for block in load_tiny.blocks:  # type: ignore[union-attr]
            block.register_forward_pre_hook(lambda *_: seen.append(there()))
        around = there()
        assert around == {name for name in rests if not name.startswith("blocks.")} != set()
        assert torch.equal(load_tiny(**inputs).sample, wanted)
        assert there() == around
        with pytest.raises(AttributeError):  # without a time, within the first block
            load_tiny.blocks[0](torch.ones(1, 2, 3), None, None, None)  # type: ignore[index, operator]
        assert there() == around, "also after an error"
    assert [names - around for names in seen[:2]] == [
        {name for name in rests if name.startswith(f"blocks.{number}.")} for number in range(2)
    ]
    assert there() == set() and torch.equal(load_tiny(**inputs).sample, wanted)
    assert all(dict(load_tiny.named_parameters())[name] is tensor for name, (tensor, _) in rests.items())


def test_packed_layers_that_come_and_go_are_not_told() -> None:
    """One that is sent to the host gets ready to compute there, and does so on the device then."""
    layer = nn.Sequential(nn.Linear(8, 8))
    pack_(convert_(quantize_(layer, QuantConfig(w_bits=4, a_bits=4))))
    model = nn.Module()
    model.blocks = nn.ModuleList([layer])
    model.forward = lambda x: model.blocks[0](x)  # type: ignore[method-assign]
    told: list[object] = []
    [(_, packed)] = packed_layers(layer)
    packed.prepare_ = lambda: told.append(packed)  # type: ignore[method-assign, assignment, return-value]
    x = torch.ones(2, 8)
    wanted = model(x)
    with placement._blocks_by_turns(model, torch.device("cpu")):
        assert torch.equal(model(x), wanted)
    assert torch.equal(model(x), wanted) and told == []


def test_tensors_that_a_call_makes_rest_on_the_host_too() -> None:
    """As a backend makes when it finds itself on the device: each call has all, between them none stays."""

    class Growing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("codes", torch.arange(3.0))
            self.register_buffer("made", None, persistent=False)
            self.calls: list[tuple[bool, int]] = []

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls.append((self.made is None, 0 if self.made is None else self.made.data_ptr()))
            if self.made is None or len(self.calls) == 3:
                self.made = self.codes * 2
            return x + self.made  # type: ignore[operator]

    model = nn.Module()
    block = Growing()
    model.blocks = nn.ModuleList([block])
    with torch.inference_mode(), placement._blocks_by_turns(model, torch.device("cpu", 0)):
        x, rests = torch.ones(3), []
        for _ in range(4):
            assert torch.equal(block(x), torch.tensor([1.0, 3.0, 5.0]))
            assert block.made is not None and block.made.device == torch.device("cpu")
            rests.append(block.made.data_ptr())
    assert [is_new for is_new, _ in block.calls] == [True, False, False, False]
    assert rests[0] == rests[1] != rests[2] == rests[3], "made anew in the third call"
    assert block.calls[1][1] != rests[0] and block.calls[3][1] != rests[3], "a copy came"


def test_an_unknown_preset() -> None:
    with pytest.raises(ValueError, match="--memory all: expected one of phases, resident, blocks"):
        ModelOptions(memory="all")


def test_tensors_move_alone_and_can_be_trained_on() -> None:
    """Layers are not told, and a sampler's inference mode leaves nothing behind."""

    class Told(nn.Linear):
        told = 0

        def _apply(self, *args: object, **kwargs: object) -> nn.Module:
            self.told += 1
            return super()._apply(*args, **kwargs)  # type: ignore[arg-type]

    layer = nn.Sequential(Told(2, 2), nn.BatchNorm1d(2))
    kept = list(layer.parameters())
    with torch.inference_mode():
        moves.move_(layer, torch.device("cpu", 0))  # not equal to what they say, so all are moved
    assert all(a is b for a, b in zip(kept, layer.parameters(), strict=True))
    assert not any(t.is_inference() for t in (*layer.parameters(), *layer.buffers()))
    assert layer[0].told == 0
    layer(torch.randn(4, 2, requires_grad=True)).sum().backward()


def test_units_hold_all_but_what_is_a_models_own(load_tiny: nn.Module) -> None:
    names = {id(p): n for n, p in load_tiny.named_parameters()}
    within = [id(p) for unit in moves.units(load_tiny) for p in unit.parameters()]
    assert len(within) == len(set(within))
    assert {names[key] for key in names.keys() - set(within)} == {"scale_shift_table"}
    assert load_tiny.blocks[0] in list(moves.units(load_tiny))  # type: ignore[index, operator]


@pytest.fixture
def load_tiny(tiny: ModuleType) -> nn.Module:
    made: nn.Module = tiny.wan_transformer()
    return made


@pytest.mark.parametrize("preset", ["resident", "phases", "blocks"])
def test_what_a_training_has_placed_stays_where_it_is(preset: str, log: list[str]) -> None:
    teacher = Part("teacher", log)
    teacher.places_itself = True  # type: ignore[assignment]  # as qvgen.training.teacher says of it
    placement = Placement(CUDA, preset)
    placement.rest(teacher)
    with placement.at_work(teacher), placement.denoising(teacher):
        placement.leave(teacher)
    assert log == []


def test_what_is_changed_is_made_ready_again(log: list[str]) -> None:
    transformer, placement = nn.Sequential(Part("block", log)), Placement(CUDA, "blocks")
    placement.rest(transformer)
    assert log == ["block>cuda", "block>cpu"]
    placement.rest(transformer)
    assert log == ["block>cuda", "block>cpu"], "it is ready"
    placement.forget(transformer)
    placement.rest(transformer)
    assert log == ["block>cuda", "block>cpu"] * 2
