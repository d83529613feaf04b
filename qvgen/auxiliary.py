"""The auxiliary module Phi: a low-rank helper that training grows out of.

Phi = (L * gamma) R adds to the quantized weight what quantization took away. It starts as the
best rank-r approximation of W - Q(W), loses columns by ``qvgen.schedule`` and ends as exactly
zero. (arXiv 2505.11497, section 3.2 and 3.3.)
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from qvgen.diverged import DivergedError

Solver = Literal["auto", "svd", "gram"]
FULL_SVD_SIDE = 512


class Phi(nn.Module):
    """``(L * gamma) @ R`` with L [out, r], R [r, in] and the column factors gamma [r].

    gamma is a buffer, not a Python number: a compiled training step reads new values without
    being compiled again. It is not learnt.
    """

    gamma: Tensor

    def __init__(self, left: Tensor, right: Tensor) -> None:
        super().__init__()
        self.L = nn.Parameter(left.float().contiguous())
        self.R = nn.Parameter(right.float().contiguous())
        self.register_buffer("gamma", torch.ones(left.shape[1], device=left.device))

    @property
    def rank(self) -> int:
        """Number of columns, alive or dead."""
        return int(self.L.shape[1])

    def forward(self) -> Tensor:
        """Dense [out, in] float32, under autocast too. The definition: layers add it inside Q(W)'s pass."""
        with torch.autocast(self.L.device.type, enabled=False):
            return (self.L * self.gamma) @ self.R


@torch.no_grad()
def leading_factors(error: Tensor, rank: int, solver: Solver = "auto") -> tuple[Tensor, Tensor]:
    """Balanced factors of the best approximation of that rank, float32.

    Args:
        error: [..., out, in]; leading dimensions are a batch of layers.
        rank: wanted columns; at most min(out, in) are made.
        solver: ``svd`` of the whole matrix; ``gram``: eigenvectors of the smaller of E E^T and
            E^T E, then one projection of E, several times faster (the Gram matrix squares the
            condition number, which spoils small singular values only, and those are cut off);
            ``auto``: ``svd`` while the smaller side has at most 512 rows.

    Returns:
        L [..., out, r] and R [..., r, in], columns by descending singular value.
    """
    error = error.float()
    if solver == "svd" or (solver == "auto" and min(error.shape[-2:]) <= FULL_SVD_SIDE):
        u, s, vh = torch.linalg.svd(error, full_matrices=False)
        root = s[..., :rank].sqrt()
        return u[..., :rank] * root[..., None, :], root[..., :, None] * vh[..., :rank, :]
    if error.shape[-2] > error.shape[-1]:
        left, right = leading_factors(error.mT, rank, "gram")
        return right.mT, left.mT
    vectors = torch.linalg.eigh(error @ error.mT)[1][..., -rank:].flip(-1)  # eigh's ascend
    projected = vectors.mT @ error
    root = projected.norm(dim=-1).sqrt()
    right = projected / root.clamp_min(torch.finfo(root.dtype).tiny)[..., :, None]
    return vectors * root[..., None, :], right


@torch.no_grad()
def refactor(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Balanced factors of the same product, columns in descending order of singular value.

    Two thin QR decompositions and one r x r SVD: O((out + in) r^2) instead of the
    O(out * in * min(out, in)) of an SVD of the product. All in float64, so that only the rounding
    of the new factors is left of the error: 4e-8 of the product, where float32 throughout gives 9e-7.

    Args:
        left: [..., out, r]; leading dimensions are a batch of layers.
        right: [..., r, in]; r at most min(out, in).

    Returns:
        New left and right of the same shapes, float32.
    """
    q_left, r_left = torch.linalg.qr(left.double())
    q_right, r_right = torch.linalg.qr(right.double().mT)
    u, s, vh = torch.linalg.svd(r_left @ r_right.mT)
    root = s.sqrt()
    new_left = q_left @ (u * root[..., None, :])
    return new_left.float(), ((root[..., :, None] * vh) @ q_right.mT).float()


@torch.no_grad()
def refactor_all_(phis: Sequence[Phi], kept: int) -> None:
    """Re-factorise the first ``kept`` columns of every Phi in place and zero the others.

    Layers of one shape go through one batched decomposition.

    Raises:
        DivergedError: NaN or infinity in a Phi: the training diverged, or its data holds some.
    """
    for group in by_shape(phis):
        keep = min(kept, group[0].rank)
        lefts = torch.stack([phi.L[:, :keep] for phi in group])
        rights = torch.stack([phi.R[:keep] for phi in group])
        if not (torch.isfinite(lefts).all() and torch.isfinite(rights).all()):
            raise DivergedError(
                "training diverged: Phi holds NaN or infinity; lower lr_phi or lr_weights, or look for NaN "
                "in the training data"
            )
        for phi, left, right in zip(group, *refactor(lefts, rights), strict=True):
            phi.L.zero_()[:, :keep] = left
            phi.R.zero_()[:keep] = right


@torch.no_grad()
def reorder_(phi: Phi, order: Tensor) -> None:
    """Put the first ``len(order)`` columns into another order, in place; the product stays."""
    phi.L[:, : len(order)] = phi.L[:, order]
    phi.R[: len(order)] = phi.R[order]


@torch.no_grad()
def singular_values(phis: Sequence[Phi]) -> list[Tensor]:
    """Of each ``(L * gamma) R``, descending, [rank of that Phi] float32, in the order given."""
    found: dict[int, Tensor] = {}
    for group in by_shape(phis):
        r_left = torch.linalg.qr(torch.stack([phi.L * phi.gamma for phi in group]), mode="r")[1]
        r_right = torch.linalg.qr(torch.stack([phi.R.mT for phi in group]), mode="r")[1]
        values = torch.linalg.svdvals(r_left @ r_right.mT)
        found.update({id(phi): row for phi, row in zip(group, values, strict=True)})
    return [found[id(phi)] for phi in phis]


def by_shape(phis: Sequence[Phi]) -> list[list[Phi]]:
    """Groups whose L and R have the same shapes."""
    groups: dict[tuple[int, ...], list[Phi]] = defaultdict(list)
    for phi in phis:
        groups[(*phi.L.shape, *phi.R.shape)].append(phi)
    return list(groups.values())
