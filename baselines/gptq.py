"""GPTQ (Frantar et al., arXiv 2210.17323) as a method of its own: ``rtn`` with ``solver=gptq``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from baselines.calibration import Solver
from baselines.rtn import RTN


@dataclass(frozen=True, slots=True, kw_only=True)
class GPTQ(RTN):
    """Weights rounded column by column against the Hessian of the calibration inputs.

    Ranges are fixed beforehand, as in the SVDQuant authors' use of it. The solver itself is
    ``baselines.gptq_solver``; ``svdquant`` and ``viditq`` take it by ``solver=gptq``.
    """

    name: ClassVar[str] = "gptq"
    summary: ClassVar[str] = "rounding that makes good its own error on calibration inputs"
    paper: ClassVar[str] = "arXiv 2210.17323"
    needs: ClassVar[str] = "calibration"
    exact: ClassVar[str] = "the solver, with act-order"
    adapted: ClassVar[str] = "ranges searched beforehand; unseen inputs rounded to nearest"

    solver: Solver = "gptq"
