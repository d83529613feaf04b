"""SVDQuant's search: a smoothing of the input channels, then a low-rank branch (arXiv 2411.05007).

One problem is one or more linears that read the same input, their weights stacked along the outputs.
Notation of the paper: the input is divided by lambda, the weight multiplied by it, W_hat = U D + R
with the residual R quantized and the branch U D kept in 16 bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from baselines.layerwise import output_error, positive_scale, round_rows, round_weight
from qvgen.config import QuantConfig

_EXACT_UP_TO = 512
_OVERSAMPLING = 16
_POWER_STEPS = 4


@dataclass(frozen=True, slots=True)
class Problem:
    """What a search is about.

    Attributes:
        weight: float32 [out, C], of all linears that share the input.
        x: float32 calibration inputs [n, C].
        absmax: largest magnitude of each input channel, [C].
        config: quantizers of the residual and of the input.
    """

    weight: Tensor
    x: Tensor
    absmax: Tensor
    config: QuantConfig

    def wanted(self) -> Tensor:
        """The full-precision output [n, out]."""
        return self.x @ self.weight.T


@dataclass(frozen=True, slots=True)
class Branch:
    """A low-rank part: ``up`` [out, r] times ``down`` [r, C]."""

    up: Tensor
    down: Tensor

    def weight(self) -> Tensor:
        return self.up @ self.down

    def rounded(self, dtype: torch.dtype) -> Branch:
        """As it is stored; float32 again, so that the residual makes good the rounding."""
        return Branch(self.up.to(dtype).float(), self.down.to(dtype).float())


def top_svd(matrix: Tensor, rank: int) -> Branch:
    """Best approximation of that rank: ``up = U S`` and ``down = V^T``.

    Exact where the smaller side is at most 512; by subspace iteration with a fixed start above
    that (16 more columns, 4 rounds), which for SVDQuant's decisions is as good and far cheaper.
    """
    rank = min(rank, *matrix.shape)
    if min(matrix.shape) <= _EXACT_UP_TO:
        return _exact(matrix, rank)
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(matrix.shape[1], rank + _OVERSAMPLING, generator=generator).to(matrix)
    basis = torch.linalg.qr(matrix @ start).Q
    for _ in range(_POWER_STEPS):
        basis = torch.linalg.qr(matrix @ torch.linalg.qr(matrix.T @ basis).Q).Q
    small = _exact(basis.T @ matrix, rank)
    return Branch(basis @ small.up, small.down)


def _exact(matrix: Tensor, rank: int) -> Branch:
    if matrix.shape[0] > matrix.shape[1]:
        flipped = _exact(matrix.T, rank)
        norms = flipped.up.norm(dim=0)  # its columns are V S: the lengths move to the other side
        usable = positive_scale(norms)
        return Branch(flipped.down.T * norms, (flipped.up / usable).T)
    # The eigenvectors of the short side's Gram matrix are enough, and cheaper than an SVD. Squaring
    # costs accuracy at the small end of the spectrum only; the branch takes the large end.
    vectors = torch.linalg.eigh(matrix @ matrix.T).eigenvectors[:, -rank:].flip(1)
    down = vectors.T @ matrix
    norms = down.norm(dim=1)
    return Branch(vectors * norms, down / positive_scale(norms)[:, None])


def smoothing_candidates(absmax_x: Tensor, absmax_w: Tensor, steps: int) -> Iterator[Tensor]:
    """Lambda [C] to try: none, absmax(X)^a and absmax(X)^a / absmax(W)^(1-a) for a = 1/steps, ...

    With 20 steps those are the authors' 39. Channels that are all zero keep the factor 1.
    """
    yield torch.ones_like(absmax_x)
    for step in range(1, steps):
        a = step / steps
        yield positive_scale(absmax_x**a)
        yield positive_scale(absmax_x**a / absmax_w ** (1 - a))


def search_smoothing(problem: Problem, rank: int, steps: int) -> Tensor:
    """The lambda [C] whose quantized layer, with one SVD subtracted, errs least on the inputs."""
    absmax_w = problem.weight.abs().amax(0)
    wanted = problem.wanted()
    best, least = torch.ones_like(problem.absmax), float("inf")
    for candidate in smoothing_candidates(problem.absmax, absmax_w, steps):
        smooth = smoothed(problem, candidate)
        branch = top_svd(smooth.weight, rank)
        error = branch_error(smooth, branch, _residual(smooth, branch), wanted)
        if error < least:
            best, least = candidate, error
    return best


def smoothed(problem: Problem, factor: Tensor) -> Problem:
    """The same problem with inputs divided and weights multiplied by ``factor`` [C]."""
    weight, x = problem.weight * factor, problem.x / factor
    return Problem(weight, x, problem.absmax / factor, problem.config)


def refine_branch(problem: Problem, rank: int, iterations: int) -> tuple[Branch, list[float]]:
    """Alternate between the branch (SVD of W - Q) and Q (the quantized residual) until the error rises.

    Returns:
        The best branch and the relative output errors up to it, which fall throughout.
    """
    wanted = problem.wanted()
    quantized = torch.zeros_like(problem.weight)
    best = Branch(problem.weight[:, :0], problem.weight[:0])
    errors: list[float] = []
    for _ in range(iterations):
        branch = top_svd(problem.weight - quantized, rank)
        quantized = _residual(problem, branch)
        error = branch_error(problem, branch, quantized, wanted)
        if errors and error >= errors[-1]:
            break
        errors.append(error)
        best = branch
    return best, errors


def branch_error(problem: Problem, branch: Branch, quantized: Tensor, wanted: Tensor) -> float:
    """Relative squared error of the output with quantized inputs and residual, and the exact branch."""
    rounded = round_rows(problem.x, problem.config)
    found = rounded @ quantized.T + (problem.x @ branch.down.T) @ branch.up.T
    return output_error(found, wanted)


def _residual(problem: Problem, branch: Branch) -> Tensor:
    return round_weight(problem.weight - branch.weight(), problem.config).weight()
