"""What a worker keeps between tasks: plugins, the pipeline, the quantized module, the metrics."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evalharness.api import EvalProtocol, LayerStatistics, LoadedModel, Metric, Model, Prompt
from evalharness.attention import choose_
from evalharness.cells import Cell, build_method
from evalharness.errors import UserError
from evalharness.executor import WorkerSpec
from evalharness.modeloptions import build_model
from evalharness.registry import Registry

if TYPE_CHECKING:
    import torch
    from torch import nn

    from evalharness.frames import Ahead

__all__ = ["Session"]


class Session:
    """Loads each thing when first asked for, once.

    Attributes:
        emit: sends a progress event to the parent process.
        batch_limit: videos a call that fit into the GPU's memory; None while the plan's batch does.
        calibration: key, whether with Hessians, and result of the last one; see ``StageContext.calibration``.
    """

    def __init__(self, spec: WorkerSpec) -> None:
        self.spec = spec
        self.registry = Registry(spec.plugin_files)
        self.emit: Callable[[Mapping[str, Any]], None] = lambda event: None
        self.calibration: tuple[str, bool, Mapping[str, LayerStatistics]] = ("", False, {})
        self.batch_limit: int | None = None
        self._metrics: dict[str, Metric] = {}
        self._active = ""
        self._pristine: nn.Module | None = None
        self._is_fixed = False
        self._is_checked = False

    @cached_property
    def ahead(self) -> Ahead:
        """Decodes the video that is likely next while the GPU works on this one."""
        from evalharness.frames import Ahead, FrameStore

        return Ahead(FrameStore())

    @cached_property
    def model(self) -> Model:
        return build_model(self.registry, self.spec.model, self.spec.model_options)

    def check_model(self) -> None:
        """Whether this machine has the weights of the run; hashing gigabytes takes minutes, once a machine.

        Raises:
            UserError: it has none, or others.
        """
        wanted = self.spec.model_fingerprint
        if not wanted or self._is_checked:
            return
        if self.model.fingerprint() != wanted:
            raise UserError(
                f"model {self.spec.model}: a worker's machine has other weights than the run; copy or fetch "
                "the same ones to every machine"
            )
        self._is_checked = True

    @cached_property
    def prompts(self) -> dict[str, Prompt]:
        """The protocol's prompts by id."""
        protocol: EvalProtocol = self.registry.get("protocols", self.spec.protocol)()
        return {prompt.id: prompt for prompt in protocol.prompts()}

    @cached_property
    def loaded(self) -> LoadedModel:
        """The pipeline in memory; its transformer is changed by ``activate`` alone."""
        self._fix_arithmetic()
        self.check_model()
        loaded = self.model.load(self.spec.device)
        choose_(loaded.transformer, self.spec.attention)
        return loaded

    @property
    def pristine(self) -> nn.Module:
        """The full-precision transformer as loaded, in eval mode. Never handed out to be changed."""
        read = getattr(self.loaded, "full_transformer", None)
        if read is not None:
            return choose_(read(), self.spec.attention)
        if self._pristine is None:
            self._pristine = self.loaded.transformer.eval()
        return self._pristine

    def beside(self) -> nn.Module:
        """The full-precision transformer, to be held against the active one: the caller lets it go soon."""
        read = getattr(self.loaded, "read_transformer", None)
        return self.pristine if read is None else choose_(read(), self.spec.attention)

    def fresh_transformer(self, device: torch.device | str | None = None) -> nn.Module:
        """A full-precision transformer that may be changed, on ``device`` (where the session computes).

        A copy; or, of a model that can read its own again, the very one, so that there are not two.
        """
        if device is None:
            device = self.spec.device
        take = getattr(self.loaded, "take_transformer", None)
        if take is None:
            return copy.deepcopy(self.pristine).to(device)
        self._active = ""
        return choose_(take(), self.spec.attention).to(device)

    def full_precision(self) -> LoadedModel:
        """The pipeline as it was loaded, whatever cell was active.

        Of a model that reads its transformer again the active one goes first, so that there are not two.
        """
        self._active = ""
        let_go = getattr(self.loaded, "let_go", None)
        if let_go is not None:
            let_go()
        self.loaded.transformer = self.pristine
        return self.loaded

    def using(self, transformer: nn.Module) -> AbstractContextManager[None]:
        """``transformer`` samples within the block, and whatever was active does after it."""
        own = getattr(self.loaded, "using", None)
        made: AbstractContextManager[None] = self._swapped(transformer) if own is None else own(transformer)
        return made

    @contextmanager
    def _swapped(self, transformer: nn.Module) -> Iterator[None]:
        before, self.loaded.transformer = self.loaded.transformer, transformer
        try:
            yield
        finally:
            self.loaded.transformer = before

    def at_work(self, transformer: nn.Module) -> AbstractContextManager[None]:
        """Within the block ``transformer`` can be called; a model may keep it off the device otherwise."""
        own = getattr(self.loaded, "at_work", None)
        return nullcontext() if own is None else own(transformer)

    def activate(self, cell: Cell, folder: Path | None, key: str) -> LoadedModel:
        """The pipeline with the cell's transformer in it.

        Args:
            cell: whose method loads the module.
            folder: its checkpoint; None for the reference.
            key: what identifies the module; unchanged means that it is kept.

        Raises:
            ValueError: the checkpoint is missing, corrupt or foreign.
        """
        if key != self._active:
            if folder is None or not hasattr(self.loaded, "take_transformer"):
                self.full_precision()  # frees the last cell's module before the next is built
            if folder is not None:
                method = build_method(self.registry, cell)
                fresh = self.fresh_transformer(getattr(self.loaded, "build_device", None))
                module = method.load(fresh, folder).eval()
                del fresh
                self.loaded.transformer = choose_(self.executable(method, module), self.spec.attention)
            self._active = key
        return self.loaded

    def executable(self, method: Any, module: nn.Module) -> nn.Module:
        """A method's finished module in the form that this run executes."""
        if self.spec.execution == "packed":
            packed: nn.Module = method.pack(module)
            return packed
        return module

    def metric(self, name: str) -> Metric:
        """The metric plugin of that name, built once."""
        self._fix_arithmetic()
        if name not in self._metrics:
            metric: Metric = self.registry.get("metrics", name)()
            if hasattr(metric, "device"):  # the others choose for themselves
                metric.device = self.spec.device
            self._metrics[name] = metric
        return self._metrics[name]

    def _fix_arithmetic(self) -> None:
        """Before anything runs: sums depend neither on the number of cores nor on the kind of GPU.

        One torch thread, also beside a GPU, since judges run on the CPU. On a GPU float32 stays
        float32: by default torch lets convolutions use TF32, with a mantissa of ten bits.
        """
        if self._is_fixed:
            return
        self._is_fixed = True
        import torch

        torch.set_num_threads(1)
        if self.spec.device == "cuda":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch 2.9 and later have other names beside these
                torch.backends.cuda.matmul.allow_tf32 = False
                torch.backends.cudnn.allow_tf32 = False
            torch.backends.cudnn.benchmark = False
            torch.backends.cudnn.deterministic = True
