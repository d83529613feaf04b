"""Methods that train, and those without data, on transformers of both families and on broken layers."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from baselines.efficientdm import EfficientDM
from baselines.lsq import LSQ
from baselines.qdm import QDM
from baselines.rtn import RTN, RTNMinMax
from qvgen.config import QuantConfig
from qvgen.method import KDQAT, QuantMethod, QVGen
from qvgen.training.recipe import TrainRecipe
from tests.baselines.test_ptq_survival import cogvideox, wan
from tests.contexts import Batch, PlainContext
from tests.finished import finished_layers

Family = Callable[[], tuple[nn.Module, dict[str, Tensor]]]

# Next to no training: what is judged is the quantized model, not what it learns.
RECIPE = TrainRecipe(steps=6, batch_size=2, lr_weights=1e-5, lr_scales=1e-5, lr_phi=1e-5, lr_clips=1e-5)


def build(name: str, w_bits: int = 8, a_bits: int = 8) -> QuantMethod:
    bits = {"w_bits": w_bits, "a_bits": a_bits}
    plain, _, mode = name.partition("-author")
    trained: dict[str, Any] = {**bits, "recipe": RECIPE}
    if mode or name.endswith("-author"):
        trained["mode"] = "author"
    makers: dict[str, Callable[[], QuantMethod]] = {
        "rtn": lambda: RTN(**bits),
        "rtn-minmax": lambda: RTNMinMax(**bits),
        "lsq": lambda: LSQ(**trained),
        "qdm": lambda: QDM(**trained),
        "efficientdm": lambda: EfficientDM(**trained, rank=4),
        "kd-qat": lambda: KDQAT(**trained),
        "qvgen": lambda: QVGen(**trained, rank=4),
    }
    return makers[plain]()


NAMES = ["rtn", "rtn-minmax", "lsq", "qdm", "efficientdm", "kd-qat", "qvgen"]
TRAINED = [*NAMES[2:], "lsq-author", "qdm-author", "efficientdm-author"]
EVERY = [*NAMES[:2], *TRAINED]


class Context(PlainContext):
    """Batches of the family's own inputs, as the harness would give them."""

    def __init__(self, model: nn.Module, inputs: dict[str, Tensor], spoil: float | None = None) -> None:
        super().__init__(model)
        self._inputs, self._spoil = inputs, spoil

    def batches(self, batch_size: int) -> Iterator[Batch]:
        g = torch.Generator().manual_seed(self.seed)
        dtype = next(self._teacher.parameters()).dtype
        while True:
            drawn: dict[str, Any] = {
                key: torch.randn(batch_size, *value.shape[1:], generator=g).to(dtype)
                for key, value in self._inputs.items()
            }
            if self._spoil is not None:
                drawn["hidden_states"].fill_(self._spoil)
            drawn["timestep"] = torch.randint(0, 1000, (batch_size,), generator=g)
            drawn["return_dict"] = False
            yield Batch(drawn, drawn["hidden_states"] * 0.5)

    def predict(self, transformer: nn.Module, batch: Batch) -> Tensor:
        dtype = next(transformer.parameters()).dtype
        inputs = {
            key: value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value
            for key, value in batch.inputs.items()
        }
        out: Tensor = transformer(**inputs)[0]
        return out


def made(family: Family, spoil: float | None = None) -> tuple[nn.Module, Context]:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model, inputs = family()
    return model.eval(), Context(model, inputs, spoil)


def error_of(model: nn.Module, context: Context) -> float:
    """Relative squared error of predictions on samples that no training saw."""
    context.seed = 5
    batch = next(context.batches(4))
    with torch.no_grad():
        wanted = context.predict(context.teacher(), batch).float()
        found = context.predict(model, batch).float()
    assert torch.isfinite(found).all()
    return float((found - wanted).square().sum() / wanted.square().sum())


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("family", [cogvideox, wan])
def test_real_families_at_eight_bits(family: Family, name: str) -> None:
    """Every linear of a tiny random transformer of diffusers, also the embedders."""
    model, context = made(family)
    linears = [n for n, m in model.named_modules() if isinstance(m, nn.Linear)]
    done = build(name).apply(model, context)
    assert [n for n, _ in finished_layers(done)] == linears
    # The LSQ paper's start cuts off what is far from the mean.
    assert error_of(done, context) < (0.1 if name.endswith("author") else 0.02)


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dead_rows_and_columns(name: str, dtype: torch.dtype) -> None:
    """Nothing is divided by a zero: every number stays finite, in both dtypes, at few bits too."""
    model, context = made(cogvideox)
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, nn.Linear) and min(layer.weight.shape) > 8:
                layer.weight[3] = 0
                layer.weight[:, 5] = 0
        first = model.get_submodule("transformer_blocks.0.attn1.to_k")
        assert isinstance(first, nn.Linear)
        first.weight.zero_()
    model.to(dtype)
    context = Context(model, context._inputs)
    done = build(name, 3, 4).apply(copy.deepcopy(model), context)
    assert all(torch.isfinite(t).all() for t in done.state_dict().values() if t.is_floating_point())
    assert error_of(done, context) < 4


@pytest.mark.parametrize("name", ["kd-qat", "qvgen", "rtn"])
@pytest.mark.parametrize("value", [0.0, 0.5])
def test_constant_inputs(name: str, value: float) -> None:
    model, context = made(cogvideox, spoil=value)
    done = build(name).apply(model, context)
    assert error_of(done, context) < 0.02


@pytest.mark.parametrize("name", EVERY)
def test_nan_in_a_weight_is_refused(name: str) -> None:
    model, context = made(cogvideox)
    layer = model.get_submodule("transformer_blocks.0.attn1.to_v")
    assert isinstance(layer, nn.Linear)
    layer.weight.data[2, 2] = float("nan")
    with pytest.raises(ValueError, match=r"transformer_blocks\.0\.attn1\.to_v.*NaN"):
        build(name).apply(model, context)


@pytest.mark.parametrize("name", TRAINED)
def test_nan_in_the_data_is_refused(name: str) -> None:
    model, context = made(cogvideox, spoil=float("nan"))
    named = r"layer \S+: an input holds NaN" if name.endswith("author") else "training diverged"
    with pytest.raises(ValueError, match=named):
        build(name).apply(model, context)


def test_a_method_states_its_quantizers_and_how_it_applies_them() -> None:
    @dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
    class Half(QuantMethod):
        def quant_config(self) -> QuantConfig:
            return QuantConfig(w_bits=self.w_bits, a_bits=self.a_bits)

    with pytest.raises(TypeError, match=r"abstract class Half .*apply"):
        Half(w_bits=4, a_bits=4)  # type: ignore[abstract]
