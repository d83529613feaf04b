"""What a user asks of ``run``, by flags or YAML: one dataclass, the same names in both."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from evalharness import attention
from evalharness.api import Bits
from evalharness.errors import UserError
from evalharness.memory import host_memory_left
from evalharness.peers import PEERS, chosen_peers
from evalharness.store import parse_json

__all__ = [
    "RunConfig",
    "comma_list",
    "default_workers",
    "literal",
    "merge_method_options",
    "parse_bits",
    "parse_seeds",
]

MAX_SEED = 2**63 - 1  # what torch and NumPy take
_DEVICES = ("auto", "cpu", "cuda")
_EXECUTORS = ("local", "torchrun", "ray")


def default_workers() -> int:
    """Usable cores, fewer where memory is short (a worker with torch loaded takes up to 1 GB)."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    left = host_memory_left()
    return cores if left is None else max(1, min(cores, left >> 30))


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """Options of ``run``. The help texts are what ``--help`` shows.

    Raises:
        UserError: a value out of range; names the flag, the value and what is allowed.
    """

    methods: str | list[str] = field(
        default="",
        metadata={
            "help": "methods to compare: all, or e.g. qvgen,qvgen[rank=16],lsq; full precision is always in"
        },
    )
    bits: str | int | list[str | int] = field(
        default=3, metadata={"help": "bit widths: 3 (= W3A3), w4a6, or a comma list such as 4,3,2"}
    )
    model: str = field(default="tinyworld", metadata={"help": "model to quantize"})
    weights: str | None = field(
        default=None, metadata={"help": "pipeline folder of the model (the one of evalharness fetch)"}
    )
    revision: str | None = field(default=None, metadata={"help": "commit that the weights must be of"})
    generation: dict[str, Any] = field(
        default_factory=dict,
        metadata={"help": 'other generation settings, e.g. {"steps": 20}; not for every model'},
    )
    memory: str = field(
        default="phases", metadata={"help": "what lies on the GPU when: phases, resident or blocks"}
    )
    data: str | None = field(
        default=None, metadata={"help": "to train on: folder of evalharness data, or teacher (no clips)"}
    )
    protocol: str | None = field(default=None, metadata={"help": "evaluation protocol (the model's own)"})
    seeds: str | int | list[int] = field(default=0, metadata={"help": "base seeds, e.g. 0,1,2"})
    limit: int | None = field(
        default=None,
        metadata={
            "help": "use N prompts, spread over all dimensions (partial: no totals)",
            "aliases": ("--prompts",),
        },
    )
    stratified: bool = field(
        default=False, metadata={"help": "with --limit: keep the protocol's proportions instead"}
    )
    augmented: str | None = field(
        default=None,
        metadata={
            "help": "longer texts for the model to read: MAP.json, or SHORT.txt,LONG.txt (aligned lines)"
        },
    )
    dimensions: str | list[str] = field(default="", metadata={"help": "score these dimensions only"})
    metric: list[str] = field(
        default_factory=list,
        metadata={"help": "judge a dimension by this metric, e.g. upstream.scene or upstream.*; repeatable"},
    )
    output: str | None = field(default=None, metadata={"help": "run folder (runs/<model>)"})
    train: bool = field(default=False, metadata={"help": "train, even where a published checkpoint exists"})
    load: str = field(
        default="auto",
        metadata={
            "help": "checkpoints: auto (published ones), never, or a folder of <method>-<bits> folders"
        },
    )
    device: str = field(default="auto", metadata={"help": "auto, cpu or cuda"})
    workers: int | None = field(
        default=None, metadata={"help": "processes (cores; 0: in this one); one at a time uses a GPU"}
    )
    batch_size: int = field(default=1, metadata={"help": "videos per call; more than 1 needs cuda"})
    skip_layers: str = field(
        default="std", metadata={"help": "layers kept in full precision for every method: std or none"}
    )
    profile: bool = field(default=True, metadata={"help": "measure latency and memory"})
    executor: str = field(
        default="local", metadata={"help": "who runs the tasks: local processes, torchrun or ray"}
    )
    track: str = field(default="none", metadata={"help": "watch trainings beside their log: tensorboard"})
    execution: str = field(
        default="fake",
        metadata={"help": "fake (simulated in floating point) or packed (low-bit weights, integer sums)"},
    )
    attention: str = field(
        default=attention.DEFAULT,
        metadata={"help": f"the transformer's attention in every row: {', '.join(attention.CHOICES)}"},
    )
    peers: str = field(
        default="none",
        metadata={"help": f"time other libraries' transformers too: all, or {', '.join(PEERS)}"},
    )
    plugin: list[str] = field(default_factory=list, metadata={"help": "Python file with PLUGINS; repeatable"})
    method_options: dict[str, dict[str, Any]] = field(
        default_factory=dict, metadata={"help": 'options by method, as in YAML: {"qvgen": {"rank": 16}}'}
    )
    variants: dict[str, dict[str, Any]] = field(
        default_factory=dict,
        metadata={"help": 'named rows, as in YAML: {"r16": {"method": "qvgen", "options": {"rank": 16}}}'},
    )
    set: list[str] = field(
        default_factory=list, metadata={"help": "one method option, e.g. qvgen.rank=16; repeatable"}
    )

    def __post_init__(self) -> None:
        if self.device not in _DEVICES:
            raise UserError(f"--device {self.device}: expected one of {', '.join(_DEVICES)}")
        if self.executor not in _EXECUTORS:
            raise UserError(f"--executor {self.executor}: expected one of {', '.join(_EXECUTORS)}")
        if self.limit is not None and self.limit < 1:
            raise UserError(f"--limit {self.limit}: expected a whole number from 1")
        if self.stratified and self.limit is None:
            raise UserError("--stratified says how to choose prompts; give their number, e.g. --prompts 40")
        if self.batch_size < 1:
            raise UserError(f"--batch-size {self.batch_size}: expected a whole number from 1")
        if self.workers is not None and self.workers < 0:
            raise UserError(f"--workers {self.workers}: expected a whole number from 0 (0: in this process)")
        if self.train and self.load not in ("auto", "never"):
            raise UserError(f"--train and --load {self.load} contradict each other; give one of them")
        if not self.load.strip():
            raise UserError("--load is empty; give auto, never, or a folder with checkpoints")
        if self.skip_layers not in ("std", "none"):
            raise UserError(f"--skip-layers {self.skip_layers}: expected std or none")
        if self.execution not in ("fake", "packed"):
            raise UserError(f"--execution {self.execution}: expected fake or packed")
        if self.attention not in attention.CHOICES:
            raise UserError(f"--attention {self.attention}: expected one of {', '.join(attention.CHOICES)}")
        chosen_peers(self.peers)


def comma_list(value: str | Sequence[Any]) -> list[str]:
    """``"a, b"`` or ``["a", "b"]`` as ``["a", "b"]``, without blanks and repeats."""
    parts: Iterable[Any] = value.split(",") if isinstance(value, str) else value
    return list(dict.fromkeys(text for part in parts if (text := str(part).strip())))


def parse_bits(value: str | int | Sequence[str | int]) -> list[Bits]:
    """Bit widths from ``3``, ``"w4a6,3"`` or ``[4, "w3a3"]``.

    Raises:
        UserError: an entry that is no bit width, or none at all.
    """
    texts = comma_list([value] if isinstance(value, int) else value)
    if not texts:
        raise UserError("--bits is empty; give for example 3, w4a6 or 4,3,2")
    try:
        return list(dict.fromkeys(Bits.parse(text) for text in texts))
    except ValueError as error:
        raise UserError(str(error)) from error


def parse_seeds(value: str | int | Sequence[int]) -> list[int]:
    """Base seeds from ``0``, ``"0,1,2"`` or ``[0, 1]``.

    Raises:
        UserError: an entry that is no whole number from 0 to ``MAX_SEED``, or none at all.
    """
    texts = comma_list([value] if isinstance(value, int) else value)
    bad = [text for text in texts if not (text.isascii() and text.isdigit())]
    if bad or not texts:
        raise UserError(f"--seeds {','.join(texts)!r}: expected whole numbers from 0, e.g. 0,1,2")
    large = [text for text in texts if len(text) > 19 or int(text) > MAX_SEED]
    if large:
        raise UserError(f"--seeds {large[0]}: too large; expected whole numbers from 0 to {MAX_SEED}")
    return list(dict.fromkeys(int(text) for text in texts))


def merge_method_options(
    options: Mapping[str, Mapping[str, Any]], assignments: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """YAML's ``method_options`` with ``--set method.option=value`` put over them.

    An option that has parts is reached by more dots: ``qvgen.recipe.steps=100``.

    Raises:
        UserError: an assignment of another form.
    """
    merged: dict[str, dict[str, Any]] = copy.deepcopy(
        {method: dict(values) for method, values in options.items()}
    )
    for text in assignments:
        target, equals, value = text.partition("=")
        keys = target.split(".")
        if not equals or len(keys) < 2 or not all(keys):
            raise UserError(f"--set {text}: expected method.option=value, e.g. qvgen.rank=16")
        inner: dict[str, Any] = merged
        for key in keys[:-1]:
            inner = inner.setdefault(key, {})
            if not isinstance(inner, dict):
                raise UserError(f"--set {text}: {key} is {inner!r} in method_options, it has no parts")
        inner[keys[-1]] = literal(value)
    return merged


def literal(text: str) -> Any:
    """A JSON value if ``text`` is one (``16``, ``0.5``, ``1e-4``, ``true``, ``[1, 2]``), else itself."""
    try:
        return parse_json(text.lower() if text.lower() in ("true", "false", "null") else text)
    except ValueError:
        return text
