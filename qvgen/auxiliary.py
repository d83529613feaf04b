"""The auxiliary module Phi: a low-rank helper that training grows out of.

Phi = (L * gamma) R adds to the quantized weight what quantization took away. It starts as the
best rank-r approximation of W - Q(W), loses columns by ``qvgen.schedule`` and ends as exactly
zero. (arXiv 2505.11497, section 3.2 and 3.3.)
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor, nn


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
        """Dense [out, in] float32."""
        return (self.L * self.gamma) @ self.R


@torch.no_grad()
def phi_from_error(error: Tensor, rank: int) -> Phi:
    """Phi with L = U sqrt(S), R = sqrt(S) V^T of the leading ``rank`` singular values of ``error``.

    Args:
        error: W - Q(W), [out, in].
        rank: wanted columns; at most min(out, in) are made.
    """
    u, s, vh = torch.linalg.svd(error.float(), full_matrices=False)
    root = s[:rank].sqrt()
    return Phi(u[:, :rank] * root, root[:, None] * vh[:rank])


@torch.no_grad()
def refactor(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Balanced factors of the same product, columns in descending order of singular value.

    Two thin QR decompositions and one r x r SVD, float32: O((out + in) r^2) instead of the
    O(out * in * min(out, in)) of an SVD of the product.

    Args:
        left: [..., out, r]; leading dimensions are a batch of layers.
        right: [..., r, in]; r at most min(out, in).

    Returns:
        New left and right of the same shapes.
    """
    q_left, r_left = torch.linalg.qr(left.float())
    q_right, r_right = torch.linalg.qr(right.float().mT)
    u, s, vh = torch.linalg.svd(r_left @ r_right.mT)
    root = s.sqrt()
    return q_left @ (u * root[..., None, :]), (root[..., :, None] * vh) @ q_right.mT


@torch.no_grad()
def refactor_all_(phis: Sequence[Phi], kept: int) -> None:
    """Re-factorise the first ``kept`` columns of every Phi in place and zero the others.

    Layers of one shape go through one batched decomposition.
    """
    groups: dict[tuple[int, ...], list[Phi]] = defaultdict(list)
    for phi in phis:
        groups[(*phi.L.shape, *phi.R.shape)].append(phi)
    for group in groups.values():
        keep = min(kept, group[0].rank)
        lefts = torch.stack([phi.L[:, :keep] for phi in group])
        rights = torch.stack([phi.R[:keep] for phi in group])
        for phi, left, right in zip(group, *refactor(lefts, rights), strict=True):
            phi.L.zero_()[:, :keep] = left
            phi.R.zero_()[:keep] = right
