"""From options to a plan: which cells, which videos, which scores. No torch, nothing written."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evalharness.api import EvalProtocol, GenerationSettings, MetricInfo, Model, Prompt, Sample
from evalharness.attention import DEFAULT, on_cuda_only
from evalharness.augment import read_augmented
from evalharness.cells import Cell, build_method
from evalharness.compat import protocol_notes
from evalharness.config import (
    RunConfig,
    comma_list,
    default_workers,
    parse_bits,
    parse_seeds,
)
from evalharness.device import resolve_device
from evalharness.errors import UserError, unknown
from evalharness.hashing import digest, jsonable
from evalharness.modeloptions import ModelOptions, build_model
from evalharness.names import check_name
from evalharness.peers import chosen_peers
from evalharness.redaction import redact
from evalharness.registry import Registry
from evalharness.sampling import Videos, samples_by_dimension, samples_of
from evalharness.subset import spread_prompts, stratified_prompts
from evalharness.tracker import check_tracker
from evalharness.variants import resolve_rows
from evalharness.versions import package_version
from evalharness.video import CODEC

__all__ = [
    "COMMAND_ONLY",
    "RunPlan",
    "build_plan",
    "chosen_metrics",
    "installed_metrics",
    "select_dimensions",
]


COMMAND_ONLY = frozenset(
    ("cells", "prompts", "dimensions", "chosen_metrics", "load", "train", "profile", "peers", "workers")
    + ("executor", "memory", "plugin_files")
)
"""What ``RunPlan.record`` has beside the identity of the run folder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPlan:
    """One command, fully resolved.

    Attributes:
        protocol_prompts: all prompts of the protocol; what full coverage is counted against.
        prompts: those of this command, after ``--limit`` and ``--dimensions``.
        metrics: name of the metric plugin for each dimension of this command, in table order.
        unscored: dimensions of this command that have no installed metric.
        samples_by_dimension: videos of a prompt where a dimension asks for more than the others.
        texts: prompt id -> what the model reads in place of the prompt; empty: the prompts.
        chosen_metrics: dimension -> metric that the user named in place of the protocol's.
        load: ``auto``, ``never`` or the folder given with ``--load``.
        workers: processes; 0 stands for this one.
        execution: ``fake``, or ``packed``: cells run in the packed form that their method gives them.
        attention: which of torch's attention kernels the transformer runs, of ``attention.CHOICES``.
        peers: other libraries' transformers that are timed beside the full-precision row.
        model_options: what the model is built with.
        training_data: what tells the model's training data from others; None where it has none of its own.
        executor: who runs the tasks: ``local``, ``torchrun`` or ``ray``.
        notes: what a reader of the scores must know.
    """

    model: str
    model_fingerprint: str
    protocol: str
    protocol_prompts: tuple[Prompt, ...]
    prompts: tuple[Prompt, ...]
    samples_per_prompt: int
    metrics: Mapping[str, str]
    settings: GenerationSettings
    cells: tuple[Cell, ...]
    device: str
    batch_size: int
    skip_layers: str
    workers: int
    load: str
    train: bool
    profile: bool
    output: Path
    plugin_files: tuple[str, ...]
    unscored: tuple[str, ...] = ()
    samples_by_dimension: Mapping[str, int] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)
    chosen_metrics: Mapping[str, str] = field(default_factory=dict)
    execution: str = "fake"
    attention: str = DEFAULT
    peers: tuple[str, ...] = ()
    track: str = "none"
    model_options: ModelOptions = field(default_factory=ModelOptions)
    training_data: str | None = None
    executor: str = "local"
    notes: tuple[str, ...] = ()

    @property
    def model_workers(self) -> int:
        """Processes that hold the model at a time: one serves a GPU. Judges need none of it.

        Under torchrun and Ray every worker has a GPU of its own.
        """
        return 1 if self.device == "cuda" and self.executor == "local" else max(1, self.workers)

    def samples(self, cell: Cell) -> list[Sample]:
        """The videos of a cell for this command, in protocol order."""
        return samples_of(self.prompts, cell.seed, self.samples_per_prompt, self.samples_by_dimension)

    def videos(self) -> Videos:
        """Those of every cell, without a seed yet."""
        return Videos(self.prompts, self.samples_per_prompt, self.samples_by_dimension)

    def record(self) -> dict[str, Any]:
        """The resolved options, for the manifest; paths by their last name only."""
        return {
            "cells": [cell.to_json() for cell in self.cells],
            "prompts": len(self.prompts),
            "dimensions": list(self.metrics),
            **({"chosen_metrics": dict(self.chosen_metrics)} if self.chosen_metrics else {}),
            "load": self.load if self.load in ("auto", "never") else Path(self.load).name,
            "train": self.train,
            "profile": self.profile,
            **({"peers": list(self.peers)} if self.peers else {}),
            "workers": self.workers,
            "executor": self.executor,
            "memory": self.model_options.memory,
            "plugin_files": [Path(file).name for file in self.plugin_files],
            **self.identity(),
        }  # what stands before the identity is in COMMAND_ONLY

    def identity(self) -> dict[str, Any]:
        """What all cells of one run folder share; another identity is a different run."""
        settings: dict[str, Any] = jsonable(self.settings)
        found = {
            "model": self.model,
            "model_fingerprint": self.model_fingerprint,
            "protocol": self.protocol,
            "prompts_sha256": digest(self.protocol_prompts),
            "samples_per_prompt": self.samples_per_prompt,
            **({"augmented_sha256": digest(self.texts)} if self.texts else {}),
            **{f"samples.{name}": count for name, count in self.samples_by_dimension.items()},
            **{f"settings.{key}": value for key, value in settings.items()},
            **{f"video.{key}": value for key, value in CODEC.items()},
            "device": self.device,
            "batch_size": self.batch_size,
            "skip_layers": self.skip_layers,
            "torch": package_version("torch"),
            "diffusers": package_version("diffusers"),
            "transformers": package_version("transformers"),
            "av": package_version("av"),
            # Only where it is not the usual way, so that older folders keep their identity.
            **({"execution": self.execution} if self.execution != "fake" else {}),
            **({"attention": self.attention} if self.attention != DEFAULT else {}),
            **({"training_data": self.training_data} if self.training_data is not None else {}),
        }
        return dict(redact(found, environment=False))


def build_plan(config: RunConfig, registry: Registry, fingerprint: str | None = None) -> RunPlan:
    """Resolve and check everything that can be checked before work starts.

    Args:
        config: what the user asks.
        registry: the plugins.
        fingerprint: of the model, where its files are not needed; by default they are read.

    Raises:
        UserError: an unknown name, a value out of range, a combination that cannot run.
    """
    protocol_name = config.protocol or registry.get("models", config.model).default_protocol
    options = _model_options(config, protocol_name)
    model = build_model(registry, config.model, options)
    protocol: EvalProtocol = registry.get("protocols", protocol_name)()
    prompts = tuple(protocol.prompts())
    _check_prompts(prompts, protocol, protocol_name)
    wanted = select_dimensions(protocol, comma_list(config.dimensions))
    chosen = chosen_metrics(protocol, config.metric, registry)
    metrics = installed_metrics(protocol, wanted, registry, chosen)
    for metric in metrics.values():
        _check_scale(metric, registry.get("metrics", metric)().info)
    check_tracker(config.track)
    choose = stratified_prompts if config.stratified else spread_prompts
    device = resolve_device(config.device)
    if config.batch_size > 1 and device != "cuda":
        raise UserError(
            f"--batch-size {config.batch_size}: more than 1 needs --device cuda (this is {device})"
        )
    if device != "cuda" and on_cuda_only(config.attention):
        raise UserError(f"--attention {config.attention}: needs --device cuda (this is {device})")
    return RunPlan(
        model=config.model,
        model_fingerprint=fingerprint or _fingerprint(model, config.model),
        protocol=protocol_name,
        protocol_prompts=prompts,
        prompts=tuple(choose(prompts, wanted, config.limit)),
        samples_per_prompt=protocol.samples_per_prompt,
        metrics=metrics,
        chosen_metrics=chosen,
        settings=model.settings,
        cells=_cells(config, registry),
        device=device,
        batch_size=config.batch_size,
        skip_layers=config.skip_layers,
        workers=worker_count(config),
        load="never" if config.train else config.load,
        train=config.train,
        profile=config.profile,
        track=config.track,
        unscored=tuple(name for name in wanted if name not in metrics),
        samples_by_dimension=samples_by_dimension(protocol),
        texts=read_augmented(config.augmented, prompts) if config.augmented else {},
        output=Path(config.output or _default_output(config)),
        plugin_files=tuple(config.plugin),
        execution=config.execution,
        attention=config.attention,
        peers=chosen_peers(config.peers),
        model_options=options,
        training_data=_training_data(model) if fingerprint is None else None,
        executor=config.executor,
        notes=_notes(protocol, config.model, model.settings),
    )


def _notes(protocol: EvalProtocol, model: str, settings: GenerationSettings) -> tuple[str, ...]:
    fixed = getattr(settings, "fixed_noise", None) is not None
    return tuple(protocol_notes(protocol, model, settings.frames, settings.fps, fixed_noise=fixed))


def worker_count(config: RunConfig) -> int:
    """As asked; torchrun has said it already, and of a cluster nobody here knows the size."""
    if config.executor == "torchrun":
        from evalharness.executors.torchrun import world_size

        return world_size()
    if config.executor == "ray" and config.workers is None and os.environ.get("RAY_ADDRESS"):
        raise UserError(
            "--executor ray on a cluster: say how many of its GPUs or cores to use with --workers N"
        )
    return default_workers() if config.workers is None else config.workers


def _model_options(config: RunConfig, protocol: str) -> ModelOptions:
    return ModelOptions(
        weights=config.weights,
        revision=config.revision,
        protocol=protocol,
        generation=config.generation,
        memory=config.memory,
        data=config.data,
    )


def _training_data(model: Model) -> str | None:
    """From the model's optional ``training_data()``."""
    tell = getattr(model, "training_data", None)
    return None if tell is None else tell()


def select_dimensions(protocol: EvalProtocol, wanted: Sequence[str]) -> dict[str, str]:
    """The protocol's metrics for the wanted dimensions (all if none is named), in table order.

    Raises:
        UserError: a dimension that the protocol does not have.
    """
    for name in wanted:
        if name not in protocol.metrics:
            raise unknown(f"dimension of protocol {protocol.name}", name, protocol.metrics)
    return {name: metric for name, metric in protocol.metrics.items() if not wanted or name in wanted}


def chosen_metrics(protocol: EvalProtocol, names: Sequence[str], registry: Registry) -> dict[str, str]:
    """Dimension -> metric named with ``--metric``; ``family.*`` names all of a family that fit.

    Raises:
        UserError: no such metric, or one of a dimension that the protocol does not have.
    """
    chosen: dict[str, str] = {}
    for name in comma_list(names):
        family = name.removesuffix(".*")
        if family != name:
            named = {dimension: f"{family}.{dimension}" for dimension in protocol.metrics}
            found = {d: metric for d, metric in named.items() if metric in registry.names("metrics")}
            if not found:
                raise UserError(f"--metric {name}: no metric of that family fits protocol {protocol.name}")
            chosen |= found
            continue
        dimension = registry.get("metrics", name).dimension
        if dimension not in protocol.metrics:
            what = f"dimension of metric {name} in protocol {protocol.name}"
            raise unknown(what, dimension, protocol.metrics)
        chosen[dimension] = name
    return chosen


def installed_metrics(
    protocol: EvalProtocol, metrics: Mapping[str, str], registry: Registry, chosen: Mapping[str, str]
) -> dict[str, str]:
    """Which metric judges each dimension of ``metrics``; without those that none installed judges.

    The user's choice comes first, then the protocol's metric, then its fallback. Of a protocol that
    insists on its metrics, all are there.
    """
    insists = not getattr(protocol, "metrics_optional", False)
    fallbacks = getattr(protocol, "fallback_metrics", {})
    installed = set(registry.names("metrics"))
    found = {}
    for dimension, metric in metrics.items():
        candidates = [name for name in (metric, fallbacks.get(dimension)) if insists or name in installed]
        if candidates := [chosen[dimension]] if dimension in chosen else candidates:
            found[dimension] = str(candidates[0])
    return found


def _cells(config: RunConfig, registry: Registry) -> tuple[Cell, ...]:
    rows = resolve_rows(config, registry)
    seeds, bits_list = parse_seeds(config.seeds), parse_bits(config.bits)
    cells = [Cell.reference(config.model, seed) for seed in seeds]
    cells += [
        Cell(
            model=config.model, method=row.method, label=row.label, bits=bits, seed=seed, options=row.options
        )
        for bits in bits_list
        for row in rows
        for seed in seeds
    ]
    for cell in cells:
        if not cell.is_reference:
            check_name(cell.method, "method")
            method = build_method(registry, cell)
            if config.execution == "packed" and not callable(getattr(method, "pack", None)):
                raise UserError(
                    f"--execution packed: method {cell.method} has no packed form; leave it out, or use "
                    "--execution fake"
                )
    return tuple(cells)


def _default_output(config: RunConfig) -> str:
    return f"runs/{config.model}" + ("" if config.execution == "fake" else f"-{config.execution}")


def _check_scale(name: str, info: MetricInfo) -> None:
    """The mean over dimensions takes raw values, so that all must be on one scale.

    A cosine, -1..1, is on it: its 1 is the scale's; a negative one enters the mean as it is, as in VBench.
    """
    if info.high != 1 or info.low not in (0, -1):
        problem = f"range {info.low:g}..{info.high:g}"
    elif not info.higher_is_better:
        problem = "lower is better"
    else:
        return
    raise UserError(
        f"metric {name}: {problem}; the mean needs 0..1, higher is better: scale it in the metric"
    )


def _check_prompts(prompts: Sequence[Prompt], protocol: EvalProtocol, name: str) -> None:
    ids = [prompt.id for prompt in prompts]
    if len({text.lower() for text in ids}) != len(ids):
        raise UserError(f"protocol {name}: prompt ids repeat (letter case does not tell them apart)")
    for prompt in prompts:
        check_name(prompt.id, f"prompt id of protocol {name}")
        for dimension in prompt.dimensions:
            if dimension not in protocol.metrics:
                raise unknown(f"dimension in prompt {prompt.id} of {name}", dimension, protocol.metrics)


def _fingerprint(model: Model, name: str) -> str:
    try:
        return model.fingerprint()
    except UserError:
        raise  # says already what to do
    except (OSError, ValueError) as error:
        raise UserError(
            f"model {name}: its files cannot be read ({error}); run: evalharness doctor"
        ) from error
