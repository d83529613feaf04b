"""Checks of this machine: what can run, what is missing, and the line that mends it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from evalharness.api import EvalProtocol, WeightFile
from evalharness.bits import ALLOWED_BITS, Bits
from evalharness.errors import UserError, one_line
from evalharness.hashing import file_sha256
from evalharness.modeloptions import ModelOptions, build_model
from evalharness.registry import KINDS, Registry
from evalharness.versions import package_version

__all__ = ["Check", "Status", "examine"]

MIN_PYTHON = (3, 11)
MIN_FREE_GB = 1.0
_REQUIREMENT = re.compile(r"(?P<name>[A-Za-z0-9._-]+)\s*(?:>=\s*(?P<minimum>[0-9.]+))?")


class Status(StrEnum):
    """``fail``: the default run cannot work. ``warn``: something optional cannot."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One finding. ``fix`` is a command to paste, or empty."""

    name: str
    status: Status
    detail: str
    fix: str = ""


def examine(
    registry: Registry, model_name: str, output: Path, options: ModelOptions | None = None
) -> Iterator[Check]:
    """All checks, as they are made. Imports torch."""
    yield _python()
    yield from _packages()
    yield _torch()
    yield _video()
    yield from _plugins(registry)
    yield from _model(registry, model_name, options or ModelOptions(), output)
    yield from _metric_weights(registry)
    yield _memory()
    yield _disk(output)


def _python() -> Check:
    enough = sys.version_info >= MIN_PYTHON
    wanted = ".".join(map(str, MIN_PYTHON))
    return Check(
        name="python",
        status=Status.OK if enough else Status.FAIL,
        detail=f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        fix="" if enough else f"install Python {wanted} or newer and make a new environment with it",
    )


def _packages() -> Iterator[Check]:
    try:
        requirements = importlib.metadata.requires("evalharness") or []
    except importlib.metadata.PackageNotFoundError:
        yield Check(
            name="evalharness",
            status=Status.FAIL,
            detail="not installed, so that no plugin can be found",
            fix="pip install -e .",
        )
        return
    for text in requirements:
        requirement, _, marker = text.partition(";")
        if "extra" in marker and "dev" in marker:
            continue  # for those who change the harness, not for those who use it
        match = _REQUIREMENT.match(requirement)
        assert match is not None, text
        yield _package(match["name"], match["minimum"], optional="extra ==" in marker)


def _package(name: str, minimum: str | None, *, optional: bool) -> Check:
    version = package_version(name)
    wanted = f"{name}>={minimum}" if minimum else name
    missing = Status.WARN if optional else Status.FAIL
    if version is None:
        use = "not installed (optional)" if optional else "not installed"
        return Check(name=name, status=missing, detail=use, fix=f'pip install "{wanted}"')
    if minimum and _numbers(version) < _numbers(minimum):
        detail = f"{version}, older than {minimum}"
        return Check(name=name, status=missing, detail=detail, fix=f'pip install --upgrade "{wanted}"')
    return Check(name=name, status=Status.OK, detail=version)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.partition("+")[0])[:3])


def _torch() -> Check:
    try:
        import torch
    except Exception as error:
        fix = "pip install --index-url https://download.pytorch.org/whl/cpu torch"
        return Check(name="device", status=Status.FAIL, detail=f"torch: {one_line(error)}", fix=fix)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if torch.cuda.is_available():
        names = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
        return Check(name="device", status=Status.OK, detail=f"cuda: {names}; cpu: {cores} cores")
    return Check(name="device", status=Status.OK, detail=f"cpu: {cores} cores; torch sees no CUDA device")


def _video() -> Check:
    try:
        import av

        av.codec.Codec("libx264", "w")
    except Exception as error:
        fix = "pip install --force-reinstall --only-binary av av"
        return Check(name="video codec", status=Status.FAIL, detail=f"libx264: {one_line(error)}", fix=fix)
    return Check(name="video codec", status=Status.OK, detail="libx264 in PyAV")


def _plugins(registry: Registry) -> Iterator[Check]:
    for kind in KINDS:
        broken = []
        names = registry.names(kind)
        for name in names:
            try:
                registry.get(kind, name)
            except UserError as error:
                broken.append(str(error))
        good = len(names) - len(broken)
        for text in broken:
            yield Check(name=kind, status=Status.WARN, detail=text, fix="reinstall or remove that package")
        status = Status.OK if good else Status.FAIL
        yield Check(name=kind, status=status, detail=f"{good} of {len(names)} load")


def _model(registry: Registry, name: str, options: ModelOptions, output: Path) -> Iterator[Check]:
    reinstall = 'pip install --force-reinstall --no-deps "evalharness"'
    try:
        cls = registry.get("models", name)
        model = build_model(registry, name, options)
        if getattr(cls, "configurable", False):
            from evalharness.machine.outlook import outlook

            yield from outlook(model, options.protocol or model.default_protocol, registry, output)
            return
        fingerprint = model.fingerprint()
    except (UserError, OSError, ValueError) as error:
        detail = " ".join(str(error).split())
        yield Check(name=f"model {name}", status=Status.FAIL, detail=detail, fix=reinstall)
        return
    yield Check(name=f"model {name}", status=Status.OK, detail=f"weights {fingerprint[:12]}...")
    yield from _weights(f"model {name}", cls, getattr(model, "weights", ()))
    yield _protocol(registry, model.default_protocol)
    published = [
        f"{method} {Bits(width, width).label}"
        for method in registry.names("methods")
        for width in reversed(ALLOWED_BITS)
        if model.checkpoint(method, Bits(width, width)) is not None
    ]
    detail = ", ".join(published) or "none: trained methods will be trained here"
    yield Check(name="checkpoints", status=Status.OK if published else Status.WARN, detail=detail)


def _protocol(registry: Registry, name: str) -> Check:
    """Whether the protocol that a default run uses can be scored whole."""
    try:
        protocol: EvalProtocol = registry.get("protocols", name)()
        prompts = protocol.prompts()
        for metric in protocol.metrics.values():
            registry.get("metrics", metric)
    except (UserError, OSError, ValueError) as error:
        detail = " ".join(str(error).split())
        return Check(name=f"protocol {name}", status=Status.FAIL, detail=detail, fix="reinstall its package")
    detail = f"{len(prompts)} prompts, {len(protocol.metrics)} dimensions, all metrics load"
    return Check(name=f"protocol {name}", status=Status.OK, detail=detail)


_GET_WEIGHTS = "for VBench only: evalharness fetch weights, evalharness fetch vbench; see docs/protocols.md"


def _metric_weights(registry: Registry) -> Iterator[Check]:
    """Of the package's own weights, whether they are whole; of those to be fetched, one line a family."""
    seen: set[str] = set()
    lacking: dict[str, list[str]] = {}
    for name in registry.names("metrics"):
        try:
            cls = registry.get("metrics", name)
        except UserError:
            continue  # reported with the plugins
        metric = cls()
        if (missing := getattr(metric, "missing", None)) is not None:  # it looks after its weights itself
            if missing:
                lacking.setdefault(name.rpartition(".")[0] or name, []).append(name.rpartition(".")[2])
            continue
        new = [weight for weight in metric.info.weights if weight.sha256 not in seen]
        seen |= {weight.sha256 for weight in new}
        yield from _weights(f"metric {name}", cls, new)
    for family, dimensions in lacking.items():
        detail = f"not all is there for {', '.join(dimensions)}: skipped; what is missing: ls metrics"
        yield Check(name=f"metric {family}.*", status=Status.WARN, detail=detail, fix=_GET_WEIGHTS)


def _weights(owner: str, cls: type[object], weights: Iterable[WeightFile]) -> Iterator[Check]:
    for weight in weights:
        path = next((path for path in _places(cls, weight.path) if path.is_file()), None)
        if path is None:
            detail, status = f"{weight.path}: missing", Status.FAIL
        elif file_sha256(path) != weight.sha256:
            detail, status = f"{weight.path}: its SHA-256 differs from the declared one", Status.FAIL
        else:
            detail, status = f"{weight.path}: present, SHA-256 right ({weight.licence})", Status.OK
        fix = "" if status is Status.OK else "reinstall the package that brings it"
        yield Check(name=owner, status=status, detail=detail, fix=fix)


def _places(cls: type[object], relative: str) -> Iterator[Path]:
    """Beside the plugin's module, in its package, beside that, and in the cache."""
    file = getattr(sys.modules.get(cls.__module__), "__file__", None)
    if file is not None:
        depth = cls.__module__.count(".") + 1
        yield from (parent / relative for parent in list(Path(file).parents)[: depth + 1])
    yield Path.home() / ".cache" / "evalharness" / relative


def _memory() -> Check:
    from evalharness.config import default_workers

    return Check(
        name="workers", status=Status.OK, detail=f"{default_workers()} at once by cores and free memory"
    )


def _disk(output: Path) -> Check:
    folder = next(path for path in (output, *output.absolute().parents) if path.is_dir())
    free = shutil.disk_usage(folder).free / 1e9
    if not os.access(folder, os.W_OK):
        fix = "choose another folder: evalharness run --output DIR"
        return Check(name="run folder", status=Status.FAIL, detail=f"{folder} cannot be written", fix=fix)
    if free < MIN_FREE_GB:
        fix = "free space, or choose another disk: evalharness run --output DIR"
        return Check(name="run folder", status=Status.FAIL, detail=f"{free:.1f} GB free at {folder}", fix=fix)
    return Check(name="run folder", status=Status.OK, detail=f"{output}: writable, {free:.0f} GB free")
