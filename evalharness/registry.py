"""Finds plugins by entry point, and loads one only when it is asked for.

A plugin that fails to load costs its own absence and a warning, never the others. Where each one
came from is kept for the manifest; what its code hashes to is part of the hash of what it made.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import importlib.util
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from evalharness.errors import UserError, one_line, unknown
from evalharness.hashing import digest, file_sha256, tree_sha256

__all__ = ["KINDS", "Plugin", "Registry"]

KINDS = ("methods", "models", "protocols", "metrics", "reporters")
OWN_PACKAGE = "evalharness"

_CALLABLES: Mapping[str, tuple[str, ...]] = {
    "methods": ("apply", "save", "load"),
    "models": ("load", "fingerprint", "checkpoint"),
    "protocols": ("prompts",),
    "metrics": ("score",),
    "reporters": ("write",),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Plugin:
    """Where a plugin comes from.

    Attributes:
        value: ``module:attribute`` of an entry point, or the class name within a file.
        source: name of the distribution, or of the ``--plugin`` file.
        version: of the distribution; None for a file.
        sha256: of a ``--plugin`` file; None for a distribution.
    """

    kind: str
    name: str
    value: str
    source: str
    version: str | None = None
    sha256: str | None = None
    entry_point: importlib.metadata.EntryPoint | None = field(default=None, compare=False, repr=False)

    def provenance(self) -> dict[str, str | None]:
        """What the manifest records."""
        return {
            "kind": self.kind,
            "name": self.name,
            "value": self.value,
            "source": self.source,
            "version": self.version,
            "sha256": self.sha256,
        }

    def __str__(self) -> str:
        return f"{self.value} from {self.source}{' ' + self.version if self.version else ''}"


class Registry:
    """All plugins of the environment and of the ``--plugin`` files.

    Raises:
        UserError: a plugin file is missing, fails to run, or declares no plugins.
    """

    def __init__(self, plugin_files: Sequence[str] = ()) -> None:
        self.plugin_files = tuple(plugin_files)
        self._found: dict[str, dict[str, list[Plugin]]] = {}
        self._classes: dict[tuple[str, str], type[Any]] = {}
        self._from_files: list[Plugin] = []
        self._hashes: dict[str, str | None] = {}
        for file in plugin_files:
            self._load_file(Path(file))

    def names(self, kind: str) -> list[str]:
        """Sorted names; nothing is imported."""
        return sorted(self._group(kind))

    def plugin(self, kind: str, name: str) -> Plugin:
        """The one plugin of that name.

        Raises:
            UserError: none of that name, or several.
        """
        group = self._group(kind)
        if name not in group:
            hint = "" if group else 'Install the harness itself: pip install -e "."'
            raise unknown(_singular(kind), name, group, hint)
        candidates = group[name]
        if len(candidates) > 1:
            raise UserError(
                f"{_singular(kind)} {name!r} is provided twice: {' and '.join(map(str, candidates))}; "
                "uninstall one of them or rename it"
            )
        return candidates[0]

    def get(self, kind: str, name: str) -> type[Any]:
        """Load the class called ``name``.

        Raises:
            UserError: unknown, provided twice, or broken; names the source.
        """
        key = (kind, name)
        if key not in self._classes:
            plugin = self.plugin(kind, name)
            assert plugin.entry_point is not None, "classes of files are loaded with the file"
            try:
                cls = plugin.entry_point.load()
            except (Exception, SystemExit) as error:
                raise UserError(
                    f"{_singular(kind)} {name!r} ({plugin}) cannot be loaded: {one_line(error)}"
                ) from error
            _check_contract(kind, name, cls, str(plugin))
            self._classes[key] = cls
        return self._classes[key]

    def load_all(self, kind: str) -> dict[str, type[Any]]:
        """Every plugin that loads, by name; each of the others is warned about."""
        loaded: dict[str, type[Any]] = {}
        for name in self.names(kind):
            try:
                loaded[name] = self.get(kind, name)
            except UserError as error:
                warnings.warn(f"left out: {error}", stacklevel=2)
        return loaded

    def provenance(self) -> list[dict[str, str | None]]:
        """Where each plugin loaded so far came from, sorted by kind and name."""
        return [self.plugin(kind, name).provenance() for kind, name in sorted(self._classes)]

    def code_hash(self, kind: str, name: str) -> str:
        """Hash of the code behind a plugin, so that an edited plugin makes its old output stale.

        A plugin file: its bytes. The harness's own plugins: all sources in the folder of their module,
        and the modules that this folder's package names in ``BUILT_ON``. Any other: all files of the
        packages with which its distribution enters this registry, and the distribution's version.
        Each is hashed once for a registry.
        """
        plugin = self.plugin(kind, name)
        if plugin.sha256 is not None:
            return plugin.sha256
        module = plugin.value.partition(":")[0]
        if module.partition(".")[0] == OWN_PACKAGE:
            package = module.rpartition(".")[0]
            built_on = getattr(importlib.import_module(package), "BUILT_ON", ())
            return digest([plugin.version, [self._module_hash(name) for name in (package, *built_on)]])
        packages = {
            other.value.partition(":")[0].partition(".")[0]
            for group in KINDS
            for others in self._group(group).values()
            for other in others
            if other.source == plugin.source
        } - {OWN_PACKAGE}
        return digest(
            [plugin.version, [[package, self._module_hash(package)] for package in sorted(packages)]]
        )

    def _module_hash(self, module: str) -> str | None:
        if module not in self._hashes:
            self._hashes[module] = _module_sha256(module)
        return self._hashes[module]

    def _group(self, kind: str) -> dict[str, list[Plugin]]:
        assert kind in KINDS, kind
        if kind not in self._found:
            group: dict[str, list[Plugin]] = {}
            origins: dict[importlib.metadata.Distribution | None, tuple[str, str | None]] = {}
            for entry in importlib.metadata.entry_points(group=f"{OWN_PACKAGE}.{kind}"):
                if entry.dist not in origins:  # each look parses the metadata anew, the whole README too
                    origins[entry.dist] = _origin(entry.dist)
                group.setdefault(entry.name, []).append(_from_entry_point(kind, entry, *origins[entry.dist]))
            for plugin in self._from_files:
                if plugin.kind == kind:
                    group.setdefault(plugin.name, []).append(plugin)
            self._found[kind] = group
        return self._found[kind]

    def _load_file(self, path: Path) -> None:
        module, sha256 = _run_file(path)
        declared = getattr(module, "PLUGINS", None)
        if not isinstance(declared, Mapping) or not declared:
            raise UserError(
                f'--plugin {path}: the file must define PLUGINS = {{"methods": {{"name": Class}}, ...}} '
                f"with groups from {', '.join(KINDS)}"
            )
        for kind, classes in declared.items():
            if kind not in KINDS:
                raise unknown(f"group in PLUGINS of {path}", str(kind), KINDS)
            if not isinstance(classes, Mapping):
                raise UserError(
                    f"--plugin {path}: PLUGINS[{kind!r}] is a {type(classes).__name__}; "
                    'expected names and classes, such as {"my-method": MyMethod}'
                )
            for name, cls in classes.items():
                _check_contract(kind, name, cls, str(path))
                self._from_files.append(
                    Plugin(kind=kind, name=name, value=cls.__name__, source=path.name, sha256=sha256)
                )
                self._classes[kind, name] = cls


def _origin(dist: importlib.metadata.Distribution | None) -> tuple[str, str | None]:
    return ("unknown distribution", None) if dist is None else (dist.name, dist.version)


def _from_entry_point(
    kind: str, entry: importlib.metadata.EntryPoint, source: str, version: str | None
) -> Plugin:
    return Plugin(
        kind=kind, name=entry.name, value=entry.value, source=source, version=version, entry_point=entry
    )


def _run_file(path: Path) -> tuple[ModuleType, str]:
    try:
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise UserError(f"--plugin {path}: cannot be read ({error.strerror})") from error
    name = f"evalharness_plugin_{sha256[:12]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UserError(f"--plugin {path}: not a Python file (.py)")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up there
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise UserError(f"--plugin {path}: raised while loading: {one_line(error)}") from error
    return module, sha256


def _check_contract(kind: str, name: str, cls: object, source: str) -> None:
    missing = [call for call in _CALLABLES[kind] if not callable(getattr(cls, call, None))]
    if not isinstance(cls, type) or missing:
        lacks = f"lacks {', '.join(missing)}()" if missing else "is not a class"
        raise UserError(
            f"{_singular(kind)} {name!r} ({source}) {lacks}; see the contract in evalharness/api.py"
        )


def _module_sha256(module: str) -> str | None:
    """Hash of a module's file, or of a package's whole tree; None when it has no source.

    Of the harness's own packages only the sources: the weights beside them have hashes of their own.
    """
    spec = importlib.util.find_spec(module)
    if spec is None:
        return None
    if spec.submodule_search_locations:
        folders = [Path(folder) for folder in spec.submodule_search_locations]
        if module.partition(".")[0] == OWN_PACKAGE:  # a package within has plugins and a hash of its own
            return digest([tree_sha256(folder, "*.py", recursive=False) for folder in folders])
        return digest([tree_sha256(folder) for folder in folders])
    return file_sha256(Path(spec.origin)) if spec.origin and Path(spec.origin).is_file() else None


def _singular(kind: str) -> str:
    return kind.removesuffix("s")
