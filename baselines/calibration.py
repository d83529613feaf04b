"""What post-training methods ask of the calibration service of their surroundings.

No torch at import: method classes import this module.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from torch import Tensor

Solver = Literal["rtn", "gptq"]

SOLVERS = ("rtn", "gptq")


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """What to collect of each layer's input while the full-precision model samples.

    The defaults are the same for all methods, so that one calibration serves several.

    Attributes:
        layers: names of the linears.
        prompts: videos to sample.
        buckets: timestep ranges with channel maxima of their own.
        rows: input rows to keep, a uniform sample.
        hessian: whether to collect the mean of x x^T.
        hessian_rows_per_call: rows of one call that it takes in.
    """

    layers: tuple[str, ...]
    prompts: int
    buckets: int = 10
    rows: int = 512
    hessian: bool = False
    hessian_rows_per_call: int = 128


class Statistics(Protocol):
    """What a layer with C inputs saw.

    Attributes:
        absmax: largest magnitudes by timestep bucket, float32 [G, C].
        low: smallest value or 0.
        high: largest value or 0.
        rows: inputs [n, C].
        hessian: mean of x x^T, float32 [C, C], if asked for.
        mean: mean of x over the same rows, float32 [C], if asked for.
        shares_input_with: name of the first layer that reads the same tensor.
    """

    @property
    def absmax(self) -> Tensor: ...
    @property
    def low(self) -> float: ...
    @property
    def high(self) -> float: ...
    @property
    def rows(self) -> Tensor: ...
    @property
    def hessian(self) -> Tensor | None: ...
    @property
    def mean(self) -> Tensor | None: ...
    @property
    def shares_input_with(self) -> str: ...


def calibrate(ctx: Any, needs: Needs, method: str) -> Mapping[str, Statistics]:
    """The statistics of each layer in ``needs``.

    Raises:
        ValueError: the context has no calibration service, or that service's own complaint.
    """
    service = getattr(ctx, "calibration", None)
    if service is None:
        raise ValueError(f"{method} needs calibration data, but its context offers no calibration()")
    found: Mapping[str, Statistics] = service(needs)
    return found
