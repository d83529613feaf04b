"""Rows of the table: methods, and variants of them with options and a name of their own.

A variant is declared in YAML and named in ``--methods``::

    variants:
      qvgen-r16: {method: qvgen, options: {rank: 16}}

or written where it is named: ``--methods "qvgen,qvgen[rank=16]"``, which is called ``qvgen-rank16``.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evalharness.cells import REFERENCE
from evalharness.config import RunConfig, comma_list, literal, merge_method_options
from evalharness.errors import UserError, unknown
from evalharness.names import check_name
from evalharness.redaction import redact
from evalharness.registry import Registry

__all__ = ["Row", "resolve_rows", "split_names"]

ALL = "all"
_KEYS = ("method", "options")
_COMMA_OUTSIDE_BRACKETS = re.compile(r",(?![^\[]*\])")
_INLINE = re.compile(r"(?P<method>[^\[\]]+)\[(?P<options>[^\[\]]+)\]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A method with its options; ``label`` is the method's name unless it is a variant."""

    label: str
    method: str
    options: Mapping[str, Any]


def resolve_rows(config: RunConfig, registry: Registry) -> list[Row]:
    """The rows that ``--methods`` names, without the reference, in that order.

    ``all`` names every installed method, by the alphabet, unless one has this name.
    A method's options are those of ``method_options`` and ``--set``. A variant has the same ones of
    its method, then its own over them, then those that ``method_options`` and ``--set`` give under
    its label. An option that has parts (such as ``recipe``) is merged part by part.

    Raises:
        UserError: an unknown method or option target, a label that is no name or is taken, an entry
            of another form.
    """
    names = _named(config, registry)
    declared = [_declared(label, entry) for label, entry in config.variants.items()]
    rows = {row.label: row for row in declared}
    for name in names:
        if "[" in name or "]" in name:
            row = _inline(name)
            if rows.setdefault(row.label, row) != row:
                raise UserError(f"variant {row.label!r} of --methods {name} is declared with other options")
    for row in rows.values():
        _check_label(row, rows, registry)
    wanted = [_inline(name).label if "[" in name else name for name in names]
    given = merge_method_options(config.method_options, config.set)
    for name in dict.fromkeys([*wanted, *given]):
        if name not in rows:
            _check_method(name, "method", [*registry.names("methods"), *rows], registry)
    chosen = [rows.get(label, Row(label=label, method=label, options={})) for label in dict.fromkeys(wanted)]
    used = {row.label for row in chosen} | {row.method for row in chosen}
    for name in merge_method_options({}, config.set):  # a file may hold options of more methods
        if name not in used:
            raise UserError(f"--set gives options for method {name!r}, which is not in --methods")
    return [_with_options(row, given) for row in chosen]


def _named(config: RunConfig, registry: Registry) -> list[str]:
    """Entries of ``--methods`` without the reference; ``all`` is every installed method."""
    installed = registry.names("methods")
    names: list[str] = []
    for name in split_names(config.methods):
        is_all = name == ALL and ALL not in config.variants and ALL not in installed
        names += installed if is_all else [name]
    return [name for name in dict.fromkeys(names) if name != REFERENCE]


def split_names(value: str | Sequence[Any]) -> list[str]:
    """``comma_list`` that leaves commas within brackets alone: ``"lsq,qvgen[rank=16,x=1]"``."""
    return comma_list(_COMMA_OUTSIDE_BRACKETS.split(value) if isinstance(value, str) else value)


def _declared(label: str, entry: Any) -> Row:
    """An entry of ``variants``."""
    example = f"expected {label}: {{method: NAME, options: {{...}}}}"
    if not isinstance(entry, Mapping):
        raise UserError(f"variant {label!r} is {entry!r}; {example}")
    for key in entry:
        if key not in _KEYS:
            raise unknown(f"key of variant {label!r}", str(key), _KEYS)
    method, options = entry.get("method"), entry.get("options") or {}
    if not isinstance(method, str):
        raise UserError(f"variant {label!r}: 'method' is {method!r}; {example}")
    if not isinstance(options, Mapping):
        raise UserError(f"variant {label!r}: 'options' is {options!r}; {example}")
    return Row(label=label, method=method, options=copy.deepcopy(dict(options)))


def _inline(text: str) -> Row:
    """``qvgen[rank=16]``; its label is made of the text, so that the same text is the same row."""
    match = _INLINE.fullmatch(text)
    if match is None:
        raise UserError(f"--methods {text}: expected method[option=value,...], e.g. qvgen[rank=16]")
    method = match["method"].strip()
    assignments = [part.partition("=") for part in comma_list(match["options"])]
    if not all(key.strip() and equals and value.strip() for key, equals, value in assignments):
        raise UserError(f"--methods {text}: expected method[option=value,...], e.g. qvgen[rank=16]")
    label = method
    options: dict[str, Any] = {}
    for key, _, value in assignments:
        label += f"-{key.strip()}{value.strip()}"
        inner: Any = options
        *parents, last = key.strip().split(".")
        for parent in parents:
            inner = inner.setdefault(parent, {})
            if not isinstance(inner, dict):
                raise UserError(f"--methods {text}: {parent} is {inner!r}, it has no parts")
        inner[last] = literal(value.strip())
    if redact(options) != options:
        raise UserError(
            f"--methods {method}[...]: a secret would be part of a name; declare a variant in YAML"
        )
    return Row(label=label, method=method, options=options)


def _check_label(row: Row, rows: Mapping[str, Row], registry: Registry) -> None:
    check_name(row.label, "variant")
    methods = registry.names("methods")
    taken = {name.lower(): f"method {name!r}" for name in [*methods, REFERENCE]}
    taken |= {label.lower(): f"variant {label!r}" for label in rows if label != row.label}
    if row.label.lower() in taken:
        raise UserError(
            f"variant {row.label!r}: {taken[row.label.lower()]} has this name already (letter case does not "
            "tell them apart); give it another one"
        )
    _check_method(row.method, f"method of variant {row.label!r}", methods, registry)


def _check_method(name: str, what: str, allowed: Sequence[str], registry: Registry) -> None:
    if name not in registry.names("methods"):
        raise unknown(what, name, allowed)
    registry.plugin("methods", name)  # says so if it is provided twice


def _with_options(row: Row, given: Mapping[str, Mapping[str, Any]]) -> Row:
    options = dict(given.get(row.method, {}))
    if row.label != row.method:
        options = _merged(_merged(options, row.options), given.get(row.label, {}))
    return Row(label=row.label, method=row.method, options=options)


def _merged(low: Mapping[str, Any], high: Mapping[str, Any]) -> dict[str, Any]:
    """``high`` over ``low``, one level deep: mappings under one key are put together."""
    merged = dict(low)
    for key, value in high.items():
        old = merged.get(key)
        if isinstance(value, Mapping) and isinstance(old, Mapping):
            value = {**old, **value}
        merged[key] = value
    return merged
